//! One framework: takes offers up to its share for what it always wants to have running, counts what comes of it.

use anyhow::{Context, Result, bail};
use smalti_framework_sdk::{Event, Events, Framework, Handle, Options};
use smalti_types::{Bytes, DurationMs, Filters, MilliCpus, Offer, Operation, Resources, Role, StatusUpdate, TaskId, TaskState};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What is declined may be offered again after this.
const REFUSE: DurationMs = DurationMs(10);
/// How long killed tasks may take to end.
const END_WITHIN: Duration = Duration::from_secs(60);

/// What came of a tenant's tasks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) items: u64,
    pub(super) singles: u64,
    pub(super) launched: u64,
    pub(super) updates: u64,
    pub(super) failed: u64,
}

impl Counts {
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            items: self.items - before.items,
            singles: self.singles - before.singles,
            launched: self.launched - before.launched,
            updates: self.updates - before.updates,
            failed: self.failed - before.failed,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { items, singles, launched, updates, failed } = self;
        write!(f, "{launched} launched, {singles} finished, {failed} failed, {items} items, {updates} updates")
    }
}

/// Something that a tenant wants to have running, so many times.
pub(super) struct Want {
    pub(super) at_once: usize,
    pub(super) resources: Resources,
    /// The operation for a task of that id; the number grows with each.
    pub(super) make: Box<dyn FnMut(TaskId, u64) -> Result<Operation> + Send>,
}

/// A framework at work.
pub(super) struct Tenant {
    counts: Arc<Mutex<(Counts, String)>>,
    stop: watch::Sender<bool>,
    work: JoinHandle<Result<()>>,
}

struct Work {
    handle: Handle,
    events: Events,
    wants: Vec<Want>,
    /// Which want each live task is for.
    live: HashMap<TaskId, usize>,
    next: u64,
    counts: Arc<Mutex<(Counts, String)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tenant {
    /// Subscribes in a role of its own and keeps `wants` running.
    pub(super) async fn start(master: &str, name: &str, wants: Vec<Want>) -> Result<Self> {
        let mut options = Options::new(master, name);
        options.info.role = Role::new(name).context("a role")?;
        let (handle, events) = Framework::connect(options).await?;
        let counts = Arc::new(Mutex::new((Counts::default(), String::new())));
        let work = Work { handle, events, wants, live: HashMap::new(), next: 0, counts: counts.clone() };
        let (stop, stopped) = watch::channel(false);
        Ok(Self { counts, stop, work: tokio::spawn(work.run(stopped)) })
    }

    pub(super) fn counts(&self) -> Counts {
        lock(&self.counts).0
    }

    pub(super) fn last_failure(&self) -> String {
        lock(&self.counts).1.clone()
    }

    /// Ends all its tasks and leaves.
    pub(super) async fn stop(self) -> Result<()> {
        self.stop.send_replace(true);
        tokio::time::timeout(END_WITHIN, self.work).await.context("a tenant's tasks did not end")?.context("a tenant")?
    }
}

impl Work {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) -> Result<()> {
        let mut stopping = false;
        loop {
            if stopping && self.live.is_empty() {
                return Ok(self.handle.teardown().await?);
            }
            let event = tokio::select! {
                event = self.events.recv() => event.context("the subscription ended")?,
                _ = stopped.changed(), if !stopping => {
                    stopping = true;
                    for task in self.live.keys() {
                        self.handle.kill(task.clone(), 0, Some(DurationMs(0))).await?;
                    }
                    continue;
                }
            };
            match event {
                Event::Offers(offers) => {
                    for offer in offers {
                        self.offered(offer, stopping).await?;
                    }
                }
                Event::Update(update) => {
                    self.count(&update.update);
                    update.ack.done();
                }
                Event::Error(message) => bail!("{message}"),
                Event::Refused { call, message } => bail!("{call}: {message}"),
                _ => {}
            }
        }
    }

    async fn offered(&mut self, offer: Offer, stopping: bool) -> Result<()> {
        let mut left = offer.resources.clone();
        let mut operations = Vec::new();
        for (n, want) in self.wants.iter_mut().enumerate().filter(|_| !stopping) {
            let mut running = self.live.values().filter(|w| **w == n).count();
            while running < want.at_once
                && let Ok(rest) = left.checked_sub(&want.resources)
            {
                left = rest;
                running += 1;
                let task = TaskId::new(format!("t{}", self.next)).context("a task id")?;
                operations.push((want.make)(task.clone(), self.next)?);
                self.next += 1;
                self.live.insert(task, n);
            }
        }
        lock(&self.counts).0.launched += operations.len() as u64;
        let filters = Filters { refuse: REFUSE };
        if operations.is_empty() {
            return Ok(self.handle.decline(vec![offer.id], filters).await?);
        }
        Ok(self.handle.accept(vec![offer.id], operations, filters).await?)
    }

    fn count(&mut self, update: &StatusUpdate) {
        let mut counts = lock(&self.counts);
        counts.0.updates += 1;
        counts.0.items += update.array.as_ref().map_or(0, |a| a.finished.len());
        if update.state.is_terminal() {
            self.live.remove(&update.key.task.task);
            match update.state {
                TaskState::Finished => counts.0.singles += 1,
                TaskState::Killed => {}
                state => {
                    counts.0.failed += 1;
                    counts.1 = format!("{state} {}: {}", update.reason, update.message);
                }
            }
        }
    }
}

/// Amounts of cpu, in thousandths of a core, and memory.
pub(super) fn resources(cpus: u64, mem_mib: u64) -> Resources {
    Resources::new(MilliCpus(cpus), Bytes::mib(mem_mib))
}
