//! Task states, reasons, usage, array deltas and status updates.

use super::resources::item_set;
use super::{ConvertError, MAX_LIST, MAX_SHORT_LIST, Problem, Result, at, wire};
use crate::v1;
use smalti_types::status::{MAX_MESSAGE_LEN, MAX_RESULT_LEN, truncate};
use smalti_types::{ArrayDelta, FailedItem, PortRange, Reason, StatusUpdate, TaskState, Time, Usage};

impl From<TaskState> for v1::TaskState {
    fn from(s: TaskState) -> Self {
        match s {
            TaskState::Staging => Self::Staging,
            TaskState::Starting => Self::Starting,
            TaskState::Running => Self::Running,
            TaskState::Killing => Self::Killing,
            TaskState::Finished => Self::Finished,
            TaskState::Failed => Self::Failed,
            TaskState::Killed => Self::Killed,
            TaskState::Error => Self::Error,
            TaskState::Dropped => Self::Dropped,
            TaskState::Unreachable => Self::Unreachable,
            TaskState::Gone => Self::Gone,
            TaskState::Lost => Self::Lost,
            TaskState::Unknown => Self::Unknown,
        }
    }
}

impl TryFrom<v1::TaskState> for TaskState {
    type Error = ConvertError;
    fn try_from(m: v1::TaskState) -> Result<Self> {
        Ok(match m {
            v1::TaskState::Unspecified => return Err(at("TaskState", "value").fail(Problem::Missing)),
            v1::TaskState::Staging => Self::Staging,
            v1::TaskState::Starting => Self::Starting,
            v1::TaskState::Running => Self::Running,
            v1::TaskState::Killing => Self::Killing,
            v1::TaskState::Finished => Self::Finished,
            v1::TaskState::Failed => Self::Failed,
            v1::TaskState::Killed => Self::Killed,
            v1::TaskState::Error => Self::Error,
            v1::TaskState::Dropped => Self::Dropped,
            v1::TaskState::Unreachable => Self::Unreachable,
            v1::TaskState::Gone => Self::Gone,
            v1::TaskState::Lost => Self::Lost,
            v1::TaskState::Unknown => Self::Unknown,
        })
    }
}

/// A state field as the number that the wire carries.
///
/// # Errors
/// When the number stands for no state.
pub(super) fn task_state(value: i32) -> Result<TaskState> {
    v1::TaskState::try_from(value)
        .map_err(|_| at("TaskState", "value").fail(Problem::UnknownEnum(value.to_string())))
        .and_then(TaskState::try_from)
}

/// Longest reason in bytes that a later version may have.
const MAX_REASON_LEN: usize = 64;

/// A reason and the words that go with it. One that only a later version knows does not make the message wrong: it becomes the nearest
/// reason that says the same about who is to blame, and its name goes into the words. What cannot be a reason at all is refused.
///
/// # Errors
/// When the text is no name in upper case.
fn reason(text: &str, state: TaskState, mut words: String) -> Result<(Reason, String)> {
    if let Some(known) = Reason::ALL.into_iter().find(|r| r.as_str() == text) {
        return Ok((known, message(words)));
    }
    if text.len() > MAX_REASON_LEN || !text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_') {
        return Err(at("StatusUpdate", "reason").fail(Problem::UnknownEnum(text.chars().take(MAX_REASON_LEN).collect())));
    }
    words.insert_str(0, &format!("{text}: "));
    let nearest = match state {
        TaskState::Failed => Reason::Trap,
        TaskState::Killed => Reason::KilledByRequest,
        TaskState::Error => Reason::InvalidTask,
        TaskState::Dropped | TaskState::Lost | TaskState::Gone => Reason::LaunchFailed,
        _ => Reason::None,
    };
    Ok((nearest, message(words)))
}

impl TryFrom<v1::Usage> for Usage {
    type Error = ConvertError;
    fn try_from(m: v1::Usage) -> Result<Self> {
        Ok(Self {
            cpu_us: m.cpu_us,
            wall_us: m.wall_us,
            peak_memory: m.peak_memory,
            bytes_read: m.bytes_read,
            bytes_written: m.bytes_written,
            fuel: m.fuel,
        })
    }
}

impl From<Usage> for v1::Usage {
    fn from(u: Usage) -> Self {
        Self {
            cpu_us: u.cpu_us,
            wall_us: u.wall_us,
            peak_memory: u.peak_memory,
            bytes_read: u.bytes_read,
            bytes_written: u.bytes_written,
            fuel: u.fuel,
        }
    }
}

fn usage(m: Option<v1::Usage>) -> Result<Usage> {
    m.map(Usage::try_from).transpose().map(Option::unwrap_or_default)
}

fn message(mut text: String) -> String {
    truncate(&mut text, MAX_MESSAGE_LEN);
    text
}

impl TryFrom<v1::FailedItem> for FailedItem {
    type Error = ConvertError;
    fn try_from(m: v1::FailedItem) -> Result<Self> {
        let state = task_state(m.state)?;
        if !state.is_terminal() {
            return Err(at("FailedItem", "state").fail(Problem::Invalid("must be terminal")));
        }
        let (reason, message) = reason(&m.reason, state, m.message)?;
        Ok(Self { item: at("FailedItem", "item").item(m.item)?, attempt: m.attempt, state, reason, message, exit_code: m.exit_code })
    }
}

impl From<FailedItem> for v1::FailedItem {
    fn from(f: FailedItem) -> Self {
        Self {
            item: f.item,
            attempt: f.attempt,
            state: v1::TaskState::from(f.state).into(),
            reason: f.reason.as_str().to_owned(),
            message: f.message,
            exit_code: f.exit_code,
        }
    }
}

impl TryFrom<v1::ArrayDelta> for ArrayDelta {
    type Error = ConvertError;
    fn try_from(m: v1::ArrayDelta) -> Result<Self> {
        let here = at("ArrayDelta", "results");
        here.count(m.results.len(), MAX_LIST)?;
        let result = |r: v1::ItemResult| Ok((here.item(r.item)?, at("ItemResult", "value").bytes(&r.value, MAX_RESULT_LEN)?));
        Ok(Self {
            finished: item_set(m.finished)?,
            failed: at("ArrayDelta", "failed").list(m.failed, MAX_LIST)?,
            returned: item_set(m.returned)?,
            results: m.results.into_iter().map(result).collect::<Result<_>>()?,
            outstanding: m.outstanding,
            slots: m.slots,
            usage: usage(m.usage)?,
        })
    }
}

impl From<ArrayDelta> for v1::ArrayDelta {
    fn from(d: ArrayDelta) -> Self {
        Self {
            finished: Some(d.finished.into()),
            failed: wire(d.failed),
            returned: Some(d.returned.into()),
            results: d.results.into_iter().map(|(item, value)| v1::ItemResult { item, value: value.into() }).collect(),
            outstanding: d.outstanding,
            slots: d.slots,
            usage: Some(d.usage.into()),
        }
    }
}

impl TryFrom<v1::StatusUpdate> for StatusUpdate {
    type Error = ConvertError;
    fn try_from(m: v1::StatusUpdate) -> Result<Self> {
        let progress = |p: v1::Progress| {
            // A guest may claim anything; more than all of it is all of it.
            let permille = u16::try_from(p.permille.min(1000)).unwrap_or(1000);
            (permille, message(p.text))
        };
        let state = task_state(m.state)?;
        let (reason, words) = reason(&m.reason, state, m.message)?;
        Ok(Self {
            key: smalti_types::UpdateKey { task: at("StatusUpdate", "task").get(m.task)?, seq: m.seq },
            state,
            reason,
            message: words,
            exit_code: m.exit_code,
            usage: usage(m.usage)?,
            time: Time(m.time_us),
            progress: m.progress.map(progress),
            result: m.result.map(|r| at("StatusUpdate", "result").bytes(&r, MAX_RESULT_LEN)).transpose()?,
            array: m.array.map(ArrayDelta::try_from).transpose()?,
            ports_in_use: at("StatusUpdate", "ports_in_use").list::<_, PortRange>(m.ports_in_use, MAX_SHORT_LIST)?.into(),
        })
    }
}

impl From<StatusUpdate> for v1::StatusUpdate {
    fn from(u: StatusUpdate) -> Self {
        Self {
            task: Some(u.key.task.into()),
            seq: u.key.seq,
            state: v1::TaskState::from(u.state).into(),
            reason: u.reason.as_str().to_owned(),
            message: u.message,
            exit_code: u.exit_code,
            usage: Some(u.usage.into()),
            time_us: u.time.0,
            progress: u.progress.map(|(permille, text)| v1::Progress { permille: permille.into(), text }),
            result: u.result.map(Into::into),
            array: u.array.map(Into::into),
            ports_in_use: u.ports_in_use.ranges().iter().map(|p| (*p).into()).collect(),
        }
    }
}

impl From<Vec<StatusUpdate>> for v1::UpdateBatch {
    fn from(updates: Vec<StatusUpdate>) -> Self {
        Self { updates: wire(updates) }
    }
}

impl TryFrom<v1::UpdateBatch> for Vec<StatusUpdate> {
    type Error = ConvertError;
    fn try_from(m: v1::UpdateBatch) -> Result<Self> {
        at("UpdateBatch", "updates").list(m.updates, MAX_LIST)
    }
}

#[cfg(test)]
mod tests {
    use super::super::strategies::status_update;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_sent_is_what_arrives(u in status_update()) {
            prop_assert_eq!(StatusUpdate::try_from(v1::StatusUpdate::from(u.clone())), Ok(u));
        }

        #[test]
        fn messages_are_cut_and_results_beyond_their_bound_refused(u in status_update()) {
            let wire = v1::StatusUpdate::from(u);
            let long = v1::StatusUpdate { message: "ä".repeat(MAX_MESSAGE_LEN), ..wire.clone() };
            prop_assert_eq!(StatusUpdate::try_from(long).unwrap().message.len(), MAX_MESSAGE_LEN);
            let large = v1::StatusUpdate { result: Some(vec![0; MAX_RESULT_LEN + 1].into()), ..wire };
            prop_assert!(StatusUpdate::try_from(large).is_err());
        }
    }

    #[test]
    fn every_state_and_reason_has_a_wire_form() {
        for state in TaskState::ALL {
            assert_eq!(task_state(v1::TaskState::from(state).into()), Ok(state));
        }
        for r in Reason::ALL {
            assert_eq!(reason(r.as_str(), TaskState::Failed, "why".into()), Ok((r, "why".into())));
        }
        assert!(task_state(0).is_err() && task_state(99).is_err());
    }

    #[test]
    fn a_reason_of_a_later_version_is_kept_in_words() {
        let later = |state| reason("HEAT_LIMIT", state, "too warm".into());
        assert_eq!(later(TaskState::Failed), Ok((Reason::Trap, "HEAT_LIMIT: too warm".into())));
        assert_eq!(later(TaskState::Dropped).map(|r| r.0), Ok(Reason::LaunchFailed));
        assert_eq!(later(TaskState::Running).map(|r| r.0), Ok(Reason::None));
        for garbage in ["nonsense", "A B", "Ä", &"X".repeat(65)] {
            assert!(reason(garbage, TaskState::Failed, String::new()).is_err(), "{garbage}");
        }
        let words = reason("HEAT_LIMIT", TaskState::Failed, "x".repeat(MAX_MESSAGE_LEN)).map(|r| r.1.len());
        assert_eq!(words, Ok(MAX_MESSAGE_LEN));
    }
}
