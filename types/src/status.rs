//! Status updates: what an agent says about a task, at least once and in order per task.

use crate::id::TaskKey;
use crate::items::ItemSet;
use crate::ports::PortSet;
use crate::task_state::{Reason, TaskState};
use crate::time::Time;
use serde::{Deserialize, Serialize};

/// Longest message of a status in bytes; the rest is cut. Statuses are kept and re-sent, so they stay small.
pub const MAX_MESSAGE_LEN: usize = 4 * 1024;
/// Longest result value in bytes that a guest may return in its status.
pub const MAX_RESULT_LEN: usize = 16 * 1024;

/// What an attempt or item has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in microseconds.
    pub cpu_us: u64,
    /// Wall time in microseconds from its start.
    pub wall_us: u64,
    /// Highest sum of linear memories and tables in bytes.
    pub peak_memory: u64,
    /// Bytes the guest read from stdin and files.
    pub bytes_read: u64,
    /// Bytes the guest wrote to stdout, stderr and files.
    pub bytes_written: u64,
    /// Fuel used; `None` when it was not counted.
    pub fuel: Option<u64>,
}

impl Usage {
    /// The sum of both; peaks are not added, the higher one stays. For arrays: `wall_us` is the sum over items.
    pub fn add(&mut self, other: &Self) {
        self.cpu_us = self.cpu_us.saturating_add(other.cpu_us);
        self.wall_us = self.wall_us.saturating_add(other.wall_us);
        self.peak_memory = self.peak_memory.max(other.peak_memory);
        self.bytes_read = self.bytes_read.saturating_add(other.bytes_read);
        self.bytes_written = self.bytes_written.saturating_add(other.bytes_written);
        if let Some(fuel) = other.fuel {
            self.fuel = Some(self.fuel.unwrap_or(0).saturating_add(fuel));
        }
    }
}

/// Names one update: delivery is at least once, repeats are dropped by this key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UpdateKey {
    /// The attempt it speaks of.
    pub task: TaskKey,
    /// Its number in the attempt's stream, from 1; 0 is never acknowledged (made by the master or a reconciliation).
    pub seq: u64,
}

/// An item that did not finish with exit code 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedItem {
    /// The item.
    pub item: u64,
    /// Its attempt.
    pub attempt: u32,
    /// Failed, Killed, Error, Dropped or Lost.
    pub state: TaskState,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// The guest's exit code, when it had one.
    pub exit_code: Option<i32>,
}

/// What happened in an array part since the update before: items as ranges, with the exceptions listed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ArrayDelta {
    /// Items that finished with exit code 0.
    pub finished: ItemSet,
    /// Items that ended otherwise.
    pub failed: Vec<FailedItem>,
    /// Items given back without having been started: they may be handed to another part.
    pub returned: ItemSet,
    /// Result values of items that returned one.
    pub results: Vec<(u64, Vec<u8>)>,
    /// Items handed to this part that have neither ended nor been returned, after this update.
    pub outstanding: u64,
    /// Slots the part still holds, after this update. The rest of its resources are free.
    pub slots: u32,
    /// Sum of the usage of the items in this delta.
    pub usage: Usage,
}

impl ArrayDelta {
    /// How many items this delta speaks of.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.finished.len() + self.failed.len() as u64 + self.returned.len()
    }
}

/// One status update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusUpdate {
    /// Which attempt, which number.
    pub key: UpdateKey,
    /// The state it is in now.
    pub state: TaskState,
    /// Why.
    pub reason: Reason,
    /// For people; at most [`MAX_MESSAGE_LEN`] bytes.
    pub message: String,
    /// The guest's exit code, when it had one.
    pub exit_code: Option<i32>,
    /// What it has used so far (array parts: all items up to now).
    pub usage: Usage,
    /// When it was made, by its maker's clock.
    pub time: Time,
    /// Progress in thousandths with the guest's words, when the guest reported any.
    pub progress: Option<(u16, String)>,
    /// The value that the guest returned; at most [`MAX_RESULT_LEN`] bytes.
    pub result: Option<Vec<u8>>,
    /// For array parts: what happened to items since the update before.
    pub array: Option<ArrayDelta>,
    /// Of a launch that failed: which of its ports other programs of the agent's machine have. Other ports may do.
    #[serde(default)]
    pub ports_in_use: PortSet,
}

impl StatusUpdate {
    /// An update without details.
    #[must_use]
    pub fn new(task: TaskKey, seq: u64, state: TaskState, reason: Reason, message: impl Into<String>, time: Time) -> Self {
        let mut message: String = message.into();
        truncate(&mut message, MAX_MESSAGE_LEN);
        Self {
            key: UpdateKey { task, seq },
            state,
            reason,
            message,
            exit_code: None,
            usage: Usage::default(),
            time,
            progress: None,
            result: None,
            array: None,
            ports_in_use: PortSet::default(),
        }
    }
}

/// What any update is counted as beside its own texts and lists, in bytes.
const BASE_WEIGHT: usize = 256;

impl StatusUpdate {
    /// About how many bytes it takes, kept or sent: for budgets.
    #[must_use]
    pub fn weight(&self) -> usize {
        let array = self.array.as_ref().map_or(0, |delta| {
            let failed: usize = delta.failed.iter().map(|f| 64 + f.message.len()).sum();
            let results: usize = delta.results.iter().map(|(_, value)| 16 + value.len()).sum();
            failed + results + (delta.finished.ranges().len() + delta.returned.ranges().len()) * 16
        });
        let progress = self.progress.as_ref().map_or(0, |(_, text)| text.len());
        BASE_WEIGHT
            + self.ports_in_use.ranges().len() * 4
            + self.message.len()
            + progress
            + self.result.as_ref().map_or(0, Vec::len)
            + array
    }
}

/// Cuts `text` to at most `max` bytes at a character boundary.
pub fn truncate(text: &mut String, max: usize) {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}
