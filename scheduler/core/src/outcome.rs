//! How a job ends: its state, and the exit code that `run`, `map` and `wait` end with.

use crate::pool::Failure;
use serde::{Deserialize, Serialize};
use smalti_types::{Reason, TaskState};

/// Why a job is ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// Somebody asked.
    Killed,
    /// An item failed and the others are not wanted then.
    FailFast,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// FINISHED, FAILED or KILLED.
    pub state: TaskState,
    /// Of the job.
    pub exit_code: i32,
    /// Of the task or lowest item that failed.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

impl Outcome {
    /// Everything finished with exit code 0.
    #[must_use]
    pub fn finished() -> Self {
        Self { state: TaskState::Finished, exit_code: 0, reason: Reason::None, message: String::new() }
    }

    /// Ended because somebody asked.
    #[must_use]
    pub fn killed() -> Self {
        let reason = Reason::KilledByRequest;
        Self { state: TaskState::Killed, exit_code: reason.exit_code(None), reason, message: "killed on request".into() }
    }

    /// The task failed.
    #[must_use]
    pub fn of_failure(failure: &Failure, ending: Option<Ending>) -> Self {
        let killed = failure.state == TaskState::Killed || ending == Some(Ending::Killed);
        let exit_code = match failure.reason.exit_code(failure.exit_code) {
            _ if killed => Reason::KilledByRequest.exit_code(None),
            // Something failed, so the job may not end like one that did not.
            0 => 125,
            code => code,
        };
        let state = if killed { TaskState::Killed } else { TaskState::Failed };
        let message = if failure.message.is_empty() && failure.reason != Reason::ExitCode {
            format!("the task is {}", failure.state)
        } else {
            failure.message.clone()
        };
        Self { state, exit_code, reason: failure.reason, message }
    }

    /// Items failed, this one first.
    #[must_use]
    pub fn of_item(item: u64, failure: &Failure, failed: u64) -> Self {
        let one = Self::of_failure(failure, None);
        let others = if failed > 1 { format!(" ({failed} items failed)") } else { String::new() };
        let what = if one.message.is_empty() { format!("exit code {}", one.exit_code) } else { one.message };
        Self { state: TaskState::Failed, message: format!("item {item}: {what}{others}"), ..one }
    }
}
