//! How much of what an executor says is believed: one that was taken over says anything.
//!
//! Owns two rules. What it says that a run has used is cut to what the run can have used. And an executor that keeps speaking of what
//! it does not hold is ended: an honest one does so only when a message crosses another. Pure arithmetic; who holds what is checked
//! in `reports`.

use crate::agent::{Agent, Out};
use smalti_types::{DurationMs, ExecutorId, Time, Usage};

/// Messages with a statement that had to be ignored, after which an executor is ended …
pub(crate) const MOST_LIES: u32 = 1_000;
/// … when they came within this time. Crossing messages make a handful.
const LIES_WITHIN: DurationMs = DurationMs(60_000);
/// Threads of a slot that can use processor time at once: its own, and two for file operations.
const THREADS_PER_SLOT: u64 = 3;

/// What some runs can have used at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Since when they can have run; `None`: they have not begun.
    pub(crate) since: Option<Time>,
    /// Slots that ran at once.
    pub(crate) slots: u64,
    /// Memory of one in bytes.
    pub(crate) memory: u64,
    /// Fuel of all together; `None`: not counted.
    pub(crate) fuel: Option<u64>,
}

impl Bounds {
    /// What is believed of `said`. Bytes read and written have no bound that is known here; sums of them saturate.
    pub(crate) fn cut(&self, now: Time, said: &Usage) -> Usage {
        let wall = self.since.map_or(0, |since| now.micros_since(since)).saturating_mul(self.slots);
        Usage {
            cpu_us: said.cpu_us.min(wall.saturating_mul(THREADS_PER_SLOT)),
            wall_us: said.wall_us.min(wall),
            peak_memory: said.peak_memory.min(self.memory),
            bytes_read: said.bytes_read,
            bytes_written: said.bytes_written,
            fuel: self.fuel.map(|most| said.fuel.unwrap_or(0).min(most)),
        }
    }
}

impl Agent {
    /// One of its messages spoke of what it does not hold.
    pub(crate) fn distrust(&mut self, now: Time, id: &ExecutorId, out: &mut Out) {
        let Some(executor) = self.pool.executors.get_mut(id) else { return };
        if now >= executor.lies_since.after(LIES_WITHIN) {
            (executor.lies, executor.lies_since) = (0, now);
        }
        executor.lies = executor.lies.saturating_add(1);
        if executor.lies == MOST_LIES {
            self.end_executor(now, id, format!("it spoke {MOST_LIES} times within a minute of what it does not hold"), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABSURD: Usage =
        Usage { cpu_us: u64::MAX, wall_us: u64::MAX, peak_memory: u64::MAX, bytes_read: 7, bytes_written: 8, fuel: Some(u64::MAX) };

    #[test]
    fn nobody_has_used_more_than_there_was() {
        let bounds = Bounds { since: Some(Time(1_000)), slots: 2, memory: 64, fuel: Some(9) };
        let cut = bounds.cut(Time(1_500), &ABSURD);
        assert_eq!(cut, Usage { cpu_us: 3_000, wall_us: 1_000, peak_memory: 64, bytes_read: 7, bytes_written: 8, fuel: Some(9) });
        // What can be is left as it is; a clock that went back gives nothing to use.
        assert_eq!(bounds.cut(Time(1_500), &cut), cut);
        assert_eq!(bounds.cut(Time(0), &ABSURD).cpu_us, 0);
        let uncounted = Bounds { since: None, fuel: None, ..bounds }.cut(Time(5_000), &ABSURD);
        assert_eq!((uncounted.wall_us, uncounted.fuel), (0, None));
    }
}
