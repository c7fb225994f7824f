//! The tenant that does its worst with its half of a core.

use super::tenant::{Counts, Tenant, Want, resources};
use super::{guests, origin};
use anyhow::Result;
use smalti_framework_sdk::push_bytes;
use smalti_types::{BundleRef, Bytes, Digest, Input, Isolation, Launch, Limits, Operation, Resources, TaskSpec};
use std::sync::atomic::{AtomicU64, Ordering};

/// Size of the inputs that it fetches, never the same one twice.
const INPUT: u64 = 64 << 20;
/// What it may print until it is stopped and begins again.
const OUTPUT: Bytes = Bytes::mib(64);

/// What its guests write to.
const DISK: Bytes = Bytes::mib(64);

/// Numbers of bundles that were submitted, over all lives of attackers: no two are the same.
static BUNDLES: AtomicU64 = AtomicU64::new(0);

/// Its name, too.
const ROLE: &str = "attacker";

pub(super) struct Attacker(Tenant);

impl Attacker {
    pub(super) async fn start(master: &str, class: Isolation) -> Result<Self> {
        let (server, role) = (origin::start().await?, ROLE.parse()?);
        let mut wants = Vec::new();
        // Guest, what one takes, how many: together 360 thousandths of a core.
        for (name, text, each, at_once) in [
            ("spin", guests::SPIN, resources(60, 16), 1),
            ("print", guests::PRINT, resources(50, 16), 1),
            ("allocate", guests::ALLOCATE, resources(50, 256), 1),
            ("progress", guests::PROGRESS, resources(50, 16), 1),
            ("open", guests::OPEN, Resources { disk: DISK, ..resources(40, 16) }, 1),
            ("write", guests::WRITE, Resources { disk: DISK, ..resources(50, 16) }, 1),
            ("nothing", guests::NOTHING, resources(10, 16), 6),
        ] {
            let bundle = push_bytes(master, &role, &format!("{name}.wat"), text.into()).await?;
            wants.push(want(at_once, each, move |_| spec(bundle.clone(), class)));
        }
        // Ten at a time, for the smallest request that there is, of bundles that nobody has seen.
        let from = server.clone();
        wants.push(want(10, resources(10, 2), move |_| {
            let n = BUNDLES.fetch_add(1, Ordering::Relaxed);
            let digest = Digest::of(guests::distinct(n).as_bytes());
            spec(BundleRef { digest, uri: Some(format!("http://{from}/bundle/{n}.wat")) }, class)
        }));
        let nothing = push_bytes(master, &role, "nothing.wat", guests::NOTHING.into()).await?;
        wants.push(want(2, resources(20, 16), move |n| {
            let uri = Some(format!("http://{server}/bytes/{INPUT}?{n}"));
            let input = Input { guest_path: Some("/in/x".into()), uri, digest: None, length: INPUT, etag: None, packing: None };
            TaskSpec { inputs: vec![input], ..spec(nothing.clone(), class) }
        }));
        Tenant::start(master, ROLE, wants).await.map(Self)
    }

    /// How many distinct bundles were submitted since the program started.
    pub(super) fn bundles() -> u64 {
        BUNDLES.load(Ordering::Relaxed)
    }

    pub(super) fn counts(&self) -> Counts {
        self.0.counts()
    }

    pub(super) fn last_failure(&self) -> String {
        self.0.last_failure()
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.0.stop().await
    }
}

fn spec(bundle: BundleRef, isolation: Isolation) -> TaskSpec {
    TaskSpec { isolation, limits: Limits { output: OUTPUT, ..Limits::default() }, ..TaskSpec::new(bundle) }
}

fn want(at_once: usize, resources: Resources, mut make: impl FnMut(u64) -> TaskSpec + Send + 'static) -> Want {
    let each = resources.clone();
    Want {
        at_once,
        resources,
        make: Box::new(move |task, n| Ok(Operation::Launch(Launch { task, attempt: 0, resources: each.clone(), spec: make(n) }))),
    }
}
