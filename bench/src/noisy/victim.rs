//! The benign tenant: an array that computes, and a stream of single tasks that compute. Its share is half a core.

use super::guests;
use super::tenant::{Counts, Tenant, Want, resources};
use anyhow::Result;
use smalti_framework_sdk::push_bytes;
use smalti_types::{ArrayTemplate, BundleRef, Isolation, ItemBatch, ItemSet, Launch, LaunchArray, Operation, TaskId, TaskSpec};

/// Items of the array: more than any run of the benchmark gets through.
const ITEMS: u64 = 100_000_000;
/// Thousandths of a core of the array's slot and of one single task, of which two run.
const ARRAY_CPUS: u64 = 400;
const SINGLE_CPUS: u64 = 50;
const MEMORY_MIB: u64 = 16;

/// Its name, too.
const ROLE: &str = "victim";

pub(super) struct Victim(Tenant);

impl Victim {
    pub(super) async fn start(master: &str, class: Isolation) -> Result<Self> {
        let bundle = push_bytes(master, &ROLE.parse()?, "compute.wat", guests::compute(rounds(class)).into()).await?;
        let single = {
            let bundle = bundle.clone();
            Want {
                at_once: 2,
                resources: resources(SINGLE_CPUS, MEMORY_MIB),
                make: Box::new(move |task, _| {
                    let spec = spec(&bundle, class);
                    Ok(Operation::Launch(Launch { task, attempt: 0, resources: resources(SINGLE_CPUS, MEMORY_MIB), spec }))
                }),
            }
        };
        let array = Want {
            at_once: 1,
            resources: resources(ARRAY_CPUS, MEMORY_MIB),
            make: Box::new(move |task, _| Ok(Operation::LaunchArray(part(task, spec(&bundle, class))))),
        };
        Tenant::start(master, ROLE, vec![array, single]).await.map(Self)
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

/// Milliseconds of work in an item or task. A process of one's own for a millisecond of work measures how fast processes start, and
/// starts are nobody's share; who wants the class has more to do.
fn rounds(class: Isolation) -> u32 {
    match class {
        Isolation::Process => 20,
        _ => 1,
    }
}

fn spec(bundle: &BundleRef, isolation: Isolation) -> TaskSpec {
    TaskSpec { isolation, ..TaskSpec::new(bundle.clone()) }
}

fn part(task: TaskId, spec: TaskSpec) -> LaunchArray {
    LaunchArray {
        task,
        attempt: 0,
        slot_resources: resources(ARRAY_CPUS, MEMORY_MIB),
        slots: 1,
        template: ArrayTemplate { spec, total_items: ITEMS, split_inputs: Vec::new() },
        batch: ItemBatch { items: ItemSet::range(0, ITEMS), attempt: 0, splits: Vec::new() },
        open: false,
    }
}
