//! One task, array or item, as `ps` shows it.

use super::ResourcesView;
use crate::time::{now_us, rfc3339};
use serde::Serialize;
use smalti_proto::v1;

/// Keys promised for `ps`; more may come, these stay.
#[derive(Debug, Serialize)]
pub(crate) struct TaskJson {
    pub(crate) task_id: String,
    pub(crate) job_id: String,
    /// `null` for single tasks and for whole arrays.
    pub(crate) item: Option<u64>,
    pub(crate) framework_id: String,
    pub(crate) role: String,
    /// `null` while it has no agent.
    pub(crate) agent_id: Option<String>,
    pub(crate) state: &'static str,
    /// Empty for none.
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) exit_code: Option<i32>,
    pub(crate) usage: UsageView,
    pub(crate) attempt: u32,
    pub(crate) name: String,
    pub(crate) resources: ResourcesView,
    /// Arrays only, else `null`.
    pub(crate) items: Option<ItemsView>,
    /// What the guest last reported.
    pub(crate) progress: Option<ProgressView>,
    /// The value the guest returned, when it is text.
    pub(crate) result: Option<String>,
    /// The same in hexadecimal, when it is not text.
    pub(crate) result_hex: Option<String>,
    pub(crate) started_at: Option<String>,
    pub(crate) finished_at: Option<String>,
    #[serde(skip)]
    pub(crate) age_us: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct UsageView {
    pub(crate) cpu_us: u64,
    pub(crate) wall_us: u64,
    /// Bytes.
    pub(crate) peak_memory: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    /// `null` when it was not counted.
    pub(crate) fuel: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ItemsView {
    pub(crate) total: u64,
    pub(crate) finished: u64,
    pub(crate) failed: u64,
    pub(crate) running: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct ProgressView {
    pub(crate) permille: u32,
    pub(crate) text: String,
}

/// The Mesos name of a state, without a prefix.
pub(crate) fn state_name(state: i32) -> &'static str {
    match v1::TaskState::try_from(state) {
        Ok(v1::TaskState::Unspecified) | Err(_) => "UNKNOWN",
        Ok(known) => known.as_str_name(),
    }
}

impl From<v1::TaskView> for TaskJson {
    fn from(t: v1::TaskView) -> Self {
        let usage = t.usage.unwrap_or_default();
        let (result, result_hex) = match t.result {
            None => (None, None),
            Some(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => (Some(text.to_owned()), None),
                Err(_) => (None, Some(bytes.iter().map(|b| format!("{b:02x}")).collect())),
            },
        };
        let end = if t.finished_us > 0 { t.finished_us } else { now_us() };
        Self {
            task_id: t.task,
            job_id: t.job,
            item: t.item,
            framework_id: t.framework,
            role: t.role,
            agent_id: Some(t.agent).filter(|a| !a.is_empty()),
            state: state_name(t.state),
            reason: t.reason,
            message: t.message,
            exit_code: t.exit_code,
            usage: UsageView {
                cpu_us: usage.cpu_us,
                wall_us: usage.wall_us,
                peak_memory: usage.peak_memory,
                bytes_read: usage.bytes_read,
                bytes_written: usage.bytes_written,
                fuel: usage.fuel,
            },
            attempt: t.attempt,
            name: t.name,
            resources: ResourcesView::new(t.resources.as_ref()),
            items: (t.items_total > 0).then_some(ItemsView {
                total: t.items_total,
                finished: t.items_finished,
                failed: t.items_failed,
                running: t.items_running,
            }),
            progress: t.progress.map(|p| ProgressView { permille: p.permille, text: p.text }),
            result,
            result_hex,
            started_at: rfc3339(t.started_us),
            finished_at: rfc3339(t.finished_us),
            age_us: (t.started_us > 0).then(|| end.saturating_sub(t.started_us)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_promised_keys_are_there_with_their_types() {
        let t = v1::TaskView {
            task: "job-1".into(),
            job: "job-1".into(),
            state: v1::TaskState::Failed.into(),
            reason: "EXIT_CODE".into(),
            exit_code: Some(3),
            usage: Some(v1::Usage { cpu_us: 5, fuel: Some(9), ..Default::default() }),
            ..Default::default()
        };
        let value = serde_json::to_value(TaskJson::from(t)).unwrap();
        let keys = [
            "task_id",
            "job_id",
            "item",
            "framework_id",
            "role",
            "agent_id",
            "state",
            "reason",
            "message",
            "exit_code",
            "usage",
            "attempt",
        ];
        for key in keys {
            assert!(value.get(key).is_some(), "{key}");
        }
        assert_eq!((&value["item"], &value["agent_id"], &value["state"]), (&json!(null), &json!(null), &json!("FAILED")));
        assert_eq!(value["usage"], json!({"cpu_us": 5, "wall_us": 0, "peak_memory": 0, "bytes_read": 0, "bytes_written": 0, "fuel": 9}));
    }

    #[test]
    fn a_result_that_is_no_text_comes_as_hexadecimal() {
        let of = |bytes: &'static [u8]| TaskJson::from(v1::TaskView { result: Some(bytes.into()), ..Default::default() });
        assert_eq!(of(b"3.14").result.as_deref(), Some("3.14"));
        assert_eq!((of(&[0xff, 1]).result, of(&[0xff, 1]).result_hex.as_deref()), (None, Some("ff01")));
    }

    #[test]
    fn every_state_has_the_name_of_its_type() {
        for state in smalti_types::TaskState::ALL {
            assert!(v1::TaskState::from_str_name(state.as_str()).is_some_and(|s| state_name(s.into()) == state.as_str()), "{state}");
        }
        assert_eq!(state_name(0), "UNKNOWN");
        assert_eq!(state_name(99), "UNKNOWN");
    }
}
