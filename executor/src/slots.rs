//! All slots of this process with what they share: engines, runs, ticker, leases, the thread that writes for the link.
//!
//! Owns the threads. Those of slots are started once, when the agent says how many, so that it can put each into its cgroup before
//! the first guest runs. The ticker and the link's thread come with them, or, in a process that runs one guest in its life, only when
//! there is something for them to do: most such guests end before.

use crate::engine::Engines;
use crate::leases::Leases;
use crate::limits::handles_per_guest;
use crate::link::Link;
use crate::modules::Loader;
use crate::runs::Runs;
use crate::slot::{self, Job, Jobs};
use crate::ticker::{self, Activity};
use anyhow::Context;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Most slots of one process; a node with more cores runs several executors.
pub(crate) const MAX_SLOTS: u32 = 1024;
/// Starting a thread takes microseconds; one that does not come up in this time never will.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Native stack of a slot's thread: host functions and the runtime; guests run on stacks of their own.
const STACK_BYTES: usize = 2 << 20;

struct Slot {
    jobs: Arc<Jobs>,
    tid: i32,
    thread: JoinHandle<()>,
}

/// The slots.
pub(crate) struct Slots {
    pub(crate) loader: Arc<Loader>,
    pub(crate) runs: Arc<Runs>,
    pub(crate) activity: Arc<Activity>,
    /// Of exclusive tasks.
    pub(crate) leases: Arc<Leases>,
    /// Most memory of one guest in bytes.
    pub(crate) max_memory: u64,
    /// Whether guests may have sockets.
    pub(crate) network: bool,
    /// Most handles of one guest, and what to say if they are few.
    pub(crate) handles: usize,
    pub(crate) warning: Option<String>,
    slots: Vec<Slot>,
    link: Arc<Link>,
    helpers: Option<Helpers>,
}

/// The ticker and the link's thread.
struct Helpers {
    ticker: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Slots {
    /// Builds the engines for `count` slots: before the walls are closed, since it needs `/proc`, and before there are threads.
    ///
    /// # Errors
    /// A senseless number of slots, no engine.
    pub(crate) fn engines(count: u32, swap_off: bool) -> anyhow::Result<Engines> {
        anyhow::ensure!((1..=MAX_SLOTS).contains(&count), "an executor has 1 to {MAX_SLOTS} slots, not {count}");
        Ok(Engines::new(count, swap_off)?)
    }

    /// Starts the engines' number of slot threads, and the helpers unless they can wait. `max_memory` 0: no bound of the executor's own.
    ///
    /// # Errors
    /// No threads.
    pub(crate) fn start(loader: Loader, max_memory: u64, network: bool, link: &Arc<Link>) -> anyhow::Result<Self> {
        let engines = loader.engines.clone();
        let count = engines.slots();
        let (handles, warning) = handles_per_guest(count);
        let runs = Arc::<Runs>::default();
        let activity = Arc::<Activity>::default();
        let (started, tids) = sync_channel(count as usize);
        let mut slots = Vec::new();
        for slot in 0..count {
            let (jobs, started, runs) = (Arc::<Jobs>::default(), started.clone(), runs.clone());
            let queue = jobs.clone();
            let body = move || {
                if let Err(e) = slot::run(slot, network, &queue, &runs, &started) {
                    eprintln!("smalti-executor: slot {slot} cannot start: {e}");
                }
            };
            let builder = thread::Builder::new().name(format!("slot-{slot}")).stack_size(STACK_BYTES);
            let thread = builder.spawn(body).with_context(|| format!("starting the thread of slot {slot}"))?;
            slots.push(Slot { jobs, tid: 0, thread });
        }
        learn_tids(&tids, &mut slots)?;
        let can_wait = engines.for_one();
        let mut started = Self {
            leases: Arc::new(Leases::new(engines)),
            link: link.clone(),
            loader: Arc::new(loader),
            runs,
            activity,
            max_memory: if max_memory == 0 { u64::MAX } else { max_memory },
            network,
            handles,
            warning,
            slots,
            helpers: None,
        };
        if !can_wait {
            started.start_helpers()?;
        }
        Ok(started)
    }

    /// Starts the ticker and the link's thread, which do not run yet.
    ///
    /// # Errors
    /// No threads: guests cannot be stopped then.
    pub(crate) fn start_helpers(&mut self) -> anyhow::Result<()> {
        let (activity, engines, runs, link) = (self.activity.clone(), self.loader.engines.clone(), self.runs.clone(), self.link.clone());
        let body = move || ticker::run(&activity, &engines, &runs, &link);
        let ticker = thread::Builder::new().name("ticker".to_owned()).spawn(body).context("starting the ticker")?;
        let link = self.link.clone();
        let writer = thread::Builder::new().name("link".to_owned()).spawn(move || link.run()).context("starting the link's thread")?;
        self.helpers = Some(Helpers { ticker, writer });
        Ok(())
    }

    /// Whether the helpers do not run.
    pub(crate) fn can_want_helpers(&self) -> bool {
        self.helpers.is_none()
    }

    /// Whether they do not, and there is something for them to do.
    pub(crate) fn want_helpers(&self) -> bool {
        self.can_want_helpers() && !self.link.is_done(|| self.runs.is_empty())
    }

    /// The jobs of one slot.
    pub(crate) fn jobs(&self, slot: u32) -> Option<&Jobs> {
        self.slots.get(slot as usize).map(|s| &*s.jobs)
    }

    /// (slot, thread id) of each.
    pub(crate) fn threads(&self) -> impl Iterator<Item = (u32, i32)> + '_ {
        (0_u32..).zip(&self.slots).map(|(number, slot)| (number, slot.tid))
    }

    /// Stops all guests at once and ends all threads.
    pub(crate) fn shutdown(self) {
        self.link.close();
        for slot in &self.slots {
            // A full queue takes this job all the same.
            let _ = slot.jobs.push(Job::Quit);
        }
        for run in self.runs.all() {
            run.kill(Instant::now(), Duration::ZERO);
        }
        for slot in self.slots {
            let _ = slot.thread.join();
        }
        self.leases.quit();
        self.activity.quit();
        self.link.end();
        if let Some(Helpers { ticker, writer }) = self.helpers {
            let _ = ticker.join();
            let _ = writer.join();
        }
    }
}

fn learn_tids(tids: &Receiver<(u32, i32)>, slots: &mut [Slot]) -> anyhow::Result<()> {
    for _ in 0..slots.len() {
        let (slot, tid) = tids.recv_timeout(START_TIMEOUT).context("a slot did not start")?;
        if let Some(slot) = slots.get_mut(slot as usize) {
            slot.tid = tid;
        }
    }
    Ok(())
}
