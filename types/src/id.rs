//! Names of things. Each kind is its own type, so that one cannot be passed for another.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest id in bytes: it becomes a file name, and file names end at 255.
pub const MAX_ID_LEN: usize = 128;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: use 1 to {MAX_ID_LEN} of the characters A-Z a-z 0-9 . _ - and begin with a letter, a digit or _")]
pub struct IdError {
    /// Which kind of id it should have been.
    pub kind: &'static str,
    /// The offending text, cut to a printable length.
    pub text: String,
}

/// Ids become parts of paths and of cgroup names: no separators, no `..`, no control characters, bounded length.
fn check(kind: &'static str, text: &str) -> Result<(), IdError> {
    let ok = !text.is_empty()
        && text.len() <= MAX_ID_LEN
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && text.as_bytes().first().is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    if ok { Ok(()) } else { Err(IdError { kind, text: text.chars().take(64).collect() }) }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the characters and the length.
            ///
            /// # Errors
            /// [`IdError`] when the text could not be a file name.
            pub fn new(text: impl AsRef<str>) -> Result<Self, IdError> {
                check($kind, text.as_ref())?;
                Ok(Self(text.as_ref().into()))
            }
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                Self::new(s)
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id! {
    /// An agent. Chosen by the agent at its first start and kept in its data directory.
    AgentId, "agent id"
}
text_id! {
    /// A framework. Given by the master at the first subscription, kept by the framework for fail-over.
    FrameworkId, "framework id"
}
text_id! {
    /// A task, or one array part on one agent. Chosen by the framework, unique within it.
    TaskId, "task id"
}
text_id! {
    /// An executor process on one agent. Chosen by the agent.
    ExecutorId, "executor id"
}
text_id! {
    /// A role: the unit between which resources are shared. Plain names now; `a/b` comes with weights and quota.
    Role, "role"
}

impl Default for Role {
    /// The role of frameworks that name none.
    fn default() -> Self {
        Self("default".into())
    }
}

/// One life of the master. A later one is greater; an offer carries the epoch in which it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct MasterEpoch(pub u64);

/// An offer: unique over all lives of the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OfferId {
    /// The life of the master that made it.
    pub epoch: MasterEpoch,
    /// Its number within that life, from 1.
    pub number: u64,
}

impl fmt::Display for OfferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:x}-O{}", self.epoch.0, self.number))
    }
}

/// One execution of a task: what statuses, kills and acknowledgements name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskKey {
    /// Whose task it is.
    pub framework: FrameworkId,
    /// Its id within the framework.
    pub task: TaskId,
    /// Which execution, from 0. A retry is the next attempt under the same id.
    pub attempt: u32,
}

impl fmt::Debug for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}#{}", self.framework, self.task, self.attempt)
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}#{}", self.framework, self.task, self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_leave_a_directory() {
        for bad in ["", ".", "..", "../x", "a/b", "a\0b", "-x", "ä", &"x".repeat(MAX_ID_LEN + 1)] {
            assert!(TaskId::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "job-1.0_x", "0", "_x"] {
            assert!(TaskId::new(good).is_ok(), "{good:?}");
        }
    }
}
