//! The runs this executor knows: single tasks and array parts, by the agent's number.
//!
//! Owns the table. A run enters it when the agent starts it and leaves it with its last message.

use crate::array::ArrayRun;
use crate::broken::BrokenPart;
use crate::control::Control;
use crate::gauge::Gauge;
use crate::host::Progress;
use crate::link::Link;
use smalti_executor_protocol::v1;
use smalti_executor_protocol::v1::from_executor::Message;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most runs at once, running or waiting for their slot.
pub(crate) const MAX_RUNS: usize = 64 * 1024;
/// A guest's progress is sent this often at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What can be done to a task that waits or runs.
#[derive(Debug)]
pub(crate) struct TaskHandle {
    pub(crate) run: u64,
    pub(crate) control: Arc<Control>,
    pub(crate) progress: Arc<Progress>,
    /// What it uses now.
    pub(crate) gauge: Arc<Gauge>,
    last_progress: Mutex<Option<Instant>>,
}

impl TaskHandle {
    pub(crate) fn new(run: u64, lease_until_us: Option<u64>) -> Self {
        Self {
            run,
            control: Arc::new(Control::new(lease_until_us)),
            progress: Arc::default(),
            gauge: Arc::default(),
            last_progress: Mutex::default(),
        }
    }

    fn tick(&self, now: Instant, link: &Link) {
        self.control.tick(now);
        let mut last = self.last_progress.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|at| now.saturating_duration_since(at) < PROGRESS_INTERVAL) {
            return;
        }
        if self.send_progress(link) {
            *last = Some(now);
        }
    }

    /// Sends the progress that is still unsent, if any, and an agent that hears it.
    pub(crate) fn send_progress(&self, link: &Link) -> bool {
        if !link.is_listening() {
            return false;
        }
        let Some((permille, text)) = self.progress.take() else { return false };
        link.mention(Message::Progress(v1::Progress { run: self.run, permille, text }));
        true
    }
}

/// One entry.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Task(Arc<TaskHandle>),
    Array(Arc<ArrayRun>),
    Broken(Arc<BrokenPart>),
}

impl Entry {
    /// Called every tick while something runs.
    pub(crate) fn tick(&self, now: Instant, link: &Link) {
        match self {
            Self::Task(task) => task.tick(now, link),
            Self::Array(array) => array.tick(now),
            Self::Broken(_) => {}
        }
    }
    /// Adds it to what this executor holds. Nobody says anything meanwhile.
    pub(crate) fn add_to(&self, holds: &mut v1::Holds) {
        match self {
            Self::Task(task) => holds.tasks.push(task.run),
            Self::Array(array) => holds.parts.extend(array.held()),
            Self::Broken(part) => holds.parts.push(part.held()),
        }
    }
    /// Asks the guests to stop, and stops them after `grace`. True: nothing is left that could end later.
    pub(crate) fn kill(&self, now: Instant, grace: Duration) -> bool {
        match self {
            Self::Task(task) => task.control.kill(now, grace),
            Self::Array(array) => array.kill(now, grace),
            Self::Broken(part) => return part.end(&[]),
        }
        false
    }
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Runs(Mutex<BTreeMap<u64, Entry>>);

impl Runs {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Adds a run. False: the number is taken, or there are too many.
    pub(crate) fn insert(&self, run: u64, entry: Entry) -> bool {
        let mut runs = self.lock();
        if runs.len() >= MAX_RUNS || runs.contains_key(&run) {
            return false;
        }
        runs.insert(run, entry);
        true
    }
    pub(crate) fn get(&self, run: u64) -> Option<Entry> {
        self.lock().get(&run).cloned()
    }
    pub(crate) fn remove(&self, run: u64) {
        self.lock().remove(&run);
    }
    /// All of them, so that they can be used without the lock.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
    pub(crate) fn all(&self) -> Vec<Entry> {
        self.lock().values().cloned().collect()
    }
}
