//! What a later life of the client must know, and its bytes: one key for each thing, the latest value counts.
//!
//! Owns the format, with its version in every value. Does not know where the bytes lie.

use smalti_types::{AgentId, DurationMs, FrameworkId, TaskId, TaskState};

/// Version of every value. Later ones are refused: what they say might change who is killed. The first did not know of closed parts, the
/// second nothing of lives.
const FORMAT: u8 = 3;
/// The earliest that is read.
const FIRST_FORMAT: u8 = 1;
/// The key of the framework's id. Task ids are not empty, so no attempt has it.
const FRAMEWORK: &[u8] = b"framework";
/// The key of the number of the last life.
const LIFE: &[u8] = b"life";
/// Beside what is said of a kill: a part was closed.
const CLOSED: u8 = 4;
/// Before the keys of attempts.
const ATTEMPT: &[u8] = b"attempt/";

/// What must be durable before the messages of the same step go out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The framework's id: a later life subscribes with it and finds its tasks again.
    Subscribed(FrameworkId),
    /// A life of the scheduler subscribes with this number: a later one does with a greater one.
    Life(u64),
    /// What is known of an attempt; replaces what was kept of it before.
    Attempt(AttemptRecord),
    /// An attempt that ended so long ago that nothing of it comes any more.
    Forgotten {
        /// The task.
        task: TaskId,
        /// Its attempt.
        attempt: u32,
    },
}

/// One attempt: launched, or taken over, and what the handler has taken of its updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRecord {
    /// The task.
    pub task: TaskId,
    /// Which execution of it.
    pub attempt: u32,
    /// Where it runs, when that is known.
    pub agent: Option<AgentId>,
    /// The last state that the handler has taken.
    pub state: Option<TaskState>,
    /// Updates up to this number were taken.
    pub taken: u64,
    /// The first number that counts: 1 for what this framework's client launched, 0 when no update came yet of what it did not.
    pub first: u64,
    /// Numbers below `first` that were taken all the same.
    pub late: Vec<u64>,
    /// A kill that has not taken effect, with its grace period when that was named.
    pub kill: Option<Option<DurationMs>>,
    /// No items are to follow for this part of an array, which it may not have heard.
    pub closed: bool,
}

/// Why a record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordError {
    /// A later build wrote it.
    Version(u8),
    /// It is not what this key has.
    Malformed(&'static str),
}

impl std::fmt::Display for RecordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Version(found) => {
                write!(f, "it has format {found}, this build reads {FIRST_FORMAT} to {FORMAT}: use the build that wrote it, or a later one")
            }
            Self::Malformed(what) => write!(f, "it is damaged: {what}"),
        }
    }
}

impl std::error::Error for RecordError {}

impl Record {
    /// The key and its new value; without a value, the key goes.
    #[must_use]
    pub fn encode(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        match self {
            Self::Subscribed(id) => (FRAMEWORK.to_vec(), Some([&[FORMAT], id.as_str().as_bytes()].concat())),
            Self::Life(number) => (LIFE.to_vec(), Some([&[FORMAT][..], &number.to_le_bytes()].concat())),
            Self::Attempt(record) => (attempt_key(&record.task, record.attempt), Some(record.encode())),
            Self::Forgotten { task, attempt } => (attempt_key(task, *attempt), None),
        }
    }

    /// Reads what [`Record::encode`] wrote.
    ///
    /// # Errors
    /// When it is of a later version, or no such thing.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self, RecordError> {
        let (version, rest) = value.split_first().ok_or(RecordError::Malformed("no version"))?;
        if !(FIRST_FORMAT..=FORMAT).contains(version) {
            return Err(RecordError::Version(*version));
        }
        if key == FRAMEWORK {
            let id = text(rest)?;
            return FrameworkId::new(id).map(Self::Subscribed).map_err(|_| RecordError::Malformed("the framework's id"));
        }
        if key == LIFE {
            let number = rest.try_into().map_err(|_| RecordError::Malformed("the number of a life"))?;
            return Ok(Self::Life(u64::from_le_bytes(number)));
        }
        let key = key.strip_prefix(ATTEMPT).ok_or(RecordError::Malformed("an unknown key"))?;
        let (task, attempt) = key.split_last_chunk::<4>().ok_or(RecordError::Malformed("a short key"))?;
        let task = TaskId::new(text(task)?).map_err(|_| RecordError::Malformed("the task's id"))?;
        AttemptRecord::decode(task, u32::from_be_bytes(*attempt), rest).map(Self::Attempt)
    }
}

/// Attempts of one task lie side by side, in their order.
fn attempt_key(task: &TaskId, attempt: u32) -> Vec<u8> {
    [ATTEMPT, task.as_str().as_bytes(), &attempt.to_be_bytes()].concat()
}

impl AttemptRecord {
    fn encode(&self) -> Vec<u8> {
        let state = self.state.and_then(|s| TaskState::ALL.iter().position(|t| *t == s)).and_then(|i| u8::try_from(i + 1).ok());
        let (kill, grace) = match self.kill {
            None => (0_u8, 0),
            Some(None) => (1, 0),
            Some(Some(grace)) => (2, grace.0),
        };
        let wants = kill | if self.closed { CLOSED } else { 0 };
        let agent = self.agent.as_ref().map_or("", AgentId::as_str);
        let mut bytes = Vec::with_capacity(40 + 8 * self.late.len() + agent.len());
        bytes.extend([FORMAT, state.unwrap_or(0), wants]);
        for number in [grace, self.taken, self.first, self.late.len() as u64].into_iter().chain(self.late.iter().copied()) {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(agent.as_bytes());
        bytes
    }

    fn decode(task: TaskId, attempt: u32, bytes: &[u8]) -> Result<Self, RecordError> {
        let ([state, wants], mut rest) = bytes.split_first_chunk::<2>().ok_or(RecordError::Malformed("it is short"))?;
        let state = match usize::from(*state).checked_sub(1) {
            None => None,
            Some(i) => Some(*TaskState::ALL.get(i).ok_or(RecordError::Malformed("an unknown state"))?),
        };
        let mut number = || {
            let (number, after) = rest.split_first_chunk::<8>().ok_or(RecordError::Malformed("it is short"))?;
            rest = after;
            Ok(u64::from_le_bytes(*number))
        };
        let (grace, taken, first, count) = (number()?, number()?, number()?, number()?);
        let late = (0..count).map(|_| number()).collect::<Result<_, _>>()?;
        let kill = match wants & !CLOSED {
            0 => None,
            1 => Some(None),
            2 => Some(Some(DurationMs(grace))),
            _ => return Err(RecordError::Malformed("an unknown kill")),
        };
        let agent = match text(rest)? {
            "" => None,
            id => Some(AgentId::new(id).map_err(|_| RecordError::Malformed("the agent's id"))?),
        };
        Ok(Self { task, attempt, agent, state, taken, first, late, kill, closed: wants & CLOSED > 0 })
    }
}

fn text(bytes: &[u8]) -> Result<&str, RecordError> {
    std::str::from_utf8(bytes).map_err(|_| RecordError::Malformed("text that is none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attempt() -> impl Strategy<Value = AttemptRecord> {
        let kill = prop::option::of(prop::option::of(any::<u64>().prop_map(DurationMs)));
        let state = prop::option::of(prop::sample::select(TaskState::ALL.to_vec()));
        let agent = prop::option::of("[a-z]{1,9}".prop_map(|a| AgentId::new(a).unwrap()));
        let numbers = (any::<u32>(), any::<u64>(), any::<u64>(), prop::collection::vec(any::<u64>(), 0..4));
        let task = "[a-z0-9.-]{0,20}[a-z]".prop_map(|task| TaskId::new(format!("t{task}")).unwrap());
        (task, agent, state, kill, any::<bool>(), numbers).prop_map(|(task, agent, state, kill, closed, (attempt, taken, first, late))| {
            AttemptRecord { task, attempt, agent, state, taken, first, late, kill, closed }
        })
    }

    proptest! {
        #[test]
        fn what_was_kept_is_read_back(record in attempt(), cut in any::<prop::sample::Index>()) {
            let record = Record::Attempt(record);
            let (key, value) = record.encode();
            let value = value.unwrap();
            prop_assert_eq!(Record::decode(&key, &value), Ok(record));
            // Whatever is lost of it, reading ends.
            let _ = Record::decode(&key, &value[..cut.index(value.len())]);
        }
    }

    #[test]
    fn other_versions_and_other_keys_are_refused() {
        let id = Record::Subscribed(FrameworkId::new("F1-1").unwrap());
        let (key, value) = id.encode();
        let mut value = value.unwrap();
        assert_eq!(Record::decode(&key, &value), Ok(id));
        assert_eq!(Record::decode(b"else", &value), Err(RecordError::Malformed("an unknown key")));
        value[0] = FORMAT + 1;
        assert_eq!(Record::decode(&key, &value), Err(RecordError::Version(FORMAT + 1)));
        let (key_of_life, life) = Record::Life(7).encode();
        assert_eq!(Record::decode(&key_of_life, &life.unwrap()), Ok(Record::Life(7)));
        assert_eq!(Record::decode(&key_of_life, &[FORMAT, 7]), Err(RecordError::Malformed("the number of a life")));
        value[0] = FIRST_FORMAT;
        assert_eq!(Record::decode(&key, &value), Ok(Record::Subscribed(FrameworkId::new("F1-1").unwrap())));
    }
}
