//! What was tried, did not work out, and is tried again: for people who wait and see nothing happen.
//!
//! Owns how that is told. Whether there is another try is decided in [`crate::retry`].

use crate::job::{Job, Stage};
use crate::pool::Failure;
use crate::retry::{self, Blame};
use serde::{Deserialize, Serialize};
use smalti_types::Time;

/// Items that failed the same way and were put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBack {
    pub(crate) failure: Failure,
    pub(crate) items: u64,
    pub(crate) not_before: Time,
}

/// The last failure of a job that is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Again {
    /// How the attempt ended, and which it was.
    pub failure: Failure,
    /// Of so many items; 0 for a task.
    pub items: u64,
    /// Number of the next attempt.
    pub next: u32,
    /// End of the pause before it; `None` once it has begun. Items begin at different times: theirs is always there.
    pub not_before: Option<Time>,
    /// Nothing was wrong with the guest: it does not count against `--retries`.
    pub infrastructure: bool,
}

impl Job {
    /// What failed last and is tried again. It stays while the next attempt runs, and is gone with the job's end.
    #[must_use]
    pub fn again(&self) -> Option<Again> {
        if self.state.outcome.is_some() {
            return None;
        }
        let (failure, items, next, not_before) = if self.state.stage == Stage::Map {
            let put_back = self.state.pool.as_ref()?.put_back_last.as_ref()?;
            (&put_back.failure, put_back.items, put_back.failure.attempt + 1, Some(put_back.not_before))
        } else {
            let run = self.state.run.as_ref()?;
            (run.previous.as_ref()?, 0, run.attempt(), run.next_wake())
        };
        let infrastructure = retry::blame(failure.state, failure.reason) == Blame::Infrastructure;
        Some(Again { failure: failure.clone(), items, next, not_before, infrastructure })
    }
}
