//! Names of jobs and of their tasks.
//!
//! A job is `j<number>-<4 hex digits>`: the number counts up in the scheduler's store, the digits keep jobs of two stores
//! apart. Its tasks are named after it, so a task id says which job it belongs to:
//!
//! | task | id |
//! |---|---|
//! | the task of a `run` job | `<job>.t` |
//! | part `p` of round `r` of a `map` job | `<job>.m<r>.<p>` |
//! | the reduce of round `r` | `<job>.r<r>` |

use serde::{Deserialize, Serialize};
use smalti_types::TaskId;
use std::fmt;
use std::str::FromStr;

/// A job. Orders by submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId {
    number: u64,
    suffix: u16,
}

/// Why a text is not the id of a job or of a job's task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of a job or of its task: they look like j12-7f3a, j12-7f3a.t, j12-7f3a.m0.3 or j12-7f3a.r0")]
pub struct NameError(pub String);

/// Which task of a job a task id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskName {
    /// The task of a `run` job.
    Single,
    /// A part of an array.
    Part {
        /// The round, from 0.
        round: u32,
        /// The part's number within the round, from 0.
        part: u32,
    },
    /// The reduce of a round.
    Reduce {
        /// The round, from 0.
        round: u32,
    },
}

/// What a person named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The job.
    pub job: JobId,
    /// The task, when one was named.
    pub task: Option<TaskName>,
}

impl JobId {
    /// The `number`th job of this store.
    #[must_use]
    pub const fn new(number: u64, suffix: u16) -> Self {
        Self { number, suffix }
    }

    /// Its place in the order of submission.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.number
    }

    /// The id of one of its tasks.
    #[must_use]
    pub fn task(self, name: TaskName) -> TaskId {
        let text = match name {
            TaskName::Single => format!("{self}.t"),
            TaskName::Part { round, part } => format!("{self}.m{round}.{part}"),
            TaskName::Reduce { round } => format!("{self}.r{round}"),
        };
        TaskId::new(text).expect("a letter, digits, dots and a dash, at most 50 bytes")
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.width().is_some() || f.precision().is_some() {
            return f.pad(&format!("j{}-{:04x}", self.number, self.suffix));
        }
        write!(f, "j{}-{:04x}", self.number, self.suffix)
    }
}

/// A number as it is written by [`fmt::Display`], and in no other way: names that differ are different names. Every status update has one,
/// so nothing is allocated to find that out.
fn plain<T: FromStr>(text: &str) -> Option<T> {
    let is_plain = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

impl FromStr for JobId {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let parse = || {
            let (number, suffix) = s.strip_prefix('j')?.split_once('-')?;
            let is_suffix = suffix.len() == 4 && suffix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            Some(Self { number: plain(number)?, suffix: is_suffix.then(|| u16::from_str_radix(suffix, 16).ok())?? })
        };
        parse().ok_or_else(|| NameError(s.chars().take(80).collect()))
    }
}

impl FromStr for Target {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let Some((job, task)) = s.split_once('.') else {
            return Ok(Self { job: s.parse()?, task: None });
        };
        let job: JobId = job.parse().map_err(|_| NameError(s.chars().take(80).collect()))?;
        let parse = || {
            if task == "t" {
                return Some(TaskName::Single);
            }
            if let Some(round) = task.strip_prefix('r') {
                return Some(TaskName::Reduce { round: plain(round)? });
            }
            let (round, part) = task.strip_prefix('m')?.split_once('.')?;
            Some(TaskName::Part { round: plain(round)?, part: plain(part)? })
        };
        let name = parse().ok_or_else(|| NameError(s.chars().take(80).collect()))?;
        Ok(Self { job, task: Some(name) })
    }
}

impl TryFrom<String> for JobId {
    type Error = NameError;
    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_everything_else_is_refused() {
        let job = JobId::new(12, 0x7f3a);
        assert_eq!(job.to_string(), "j12-7f3a");
        for name in [TaskName::Single, TaskName::Part { round: 2, part: 31 }, TaskName::Reduce { round: 7 }] {
            assert_eq!(job.task(name).as_str().parse(), Ok(Target { job, task: Some(name) }));
        }
        assert_eq!("j12-7f3a".parse(), Ok(Target { job, task: None }));
        let ids = ["", "j", "j1", "j1-7F3A", "j01-0000", "j+1-0000", "j-0000", "j1-+000", "j1-00000", "j1-000", "k1-0000", "j1-0000-0"];
        let tasks = ["j1-0000.", "j1-0000.x", "j1-0000.m0", "j1-0000.m0.+1", "j1-0000.m00.1", "j1-0000.r", "j1-0000.r01", "j1-0000.t.t"];
        for bad in ids.into_iter().chain(tasks) {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
        assert_eq!(format!("[{:<10}]", JobId::new(0, 1)), "[j0-0001   ]");
    }
}
