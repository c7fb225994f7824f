//! One job of the batch scheduler.

use super::TaskJson;
use crate::time::{now_us, rfc3339};
use serde::Serialize;
use smalti_proto::v1;
use std::collections::BTreeMap;

#[derive(Debug, Serialize)]
pub(crate) struct JobJson {
    pub(crate) job_id: String,
    pub(crate) name: String,
    pub(crate) role: String,
    /// `run` or `map`.
    pub(crate) kind: String,
    /// `PENDING`, `RUNNING`, `FINISHED`, `FAILED` or `KILLED`.
    pub(crate) state: String,
    /// `map`, `reduce`, `round 2/5: map`, …
    pub(crate) phase: String,
    pub(crate) items_total: u64,
    pub(crate) items_finished: u64,
    pub(crate) items_failed: u64,
    pub(crate) items_running: u64,
    /// Finished items by agent id.
    pub(crate) items_by_agent: BTreeMap<String, u64>,
    /// What `smalti run` exits with; `null` until the job has ended.
    pub(crate) exit_code: Option<i32>,
    /// Empty for none.
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) framework_id: String,
    pub(crate) submitted_at: Option<String>,
    pub(crate) finished_at: Option<String>,
    /// From submission to the end, or to now.
    pub(crate) elapsed_us: u64,
    /// Where its outputs are written to.
    pub(crate) output_store: Option<String>,
    /// Items whose outputs are there.
    pub(crate) items_stored: u64,
    /// The single task or the reduce, where the scheduler sends it along.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tasks: Vec<TaskJson>,
}

impl From<v1::JobView> for JobJson {
    fn from(j: v1::JobView) -> Self {
        let elapsed_us = j.finished_us.unwrap_or_else(now_us).saturating_sub(j.submitted_us);
        Self {
            job_id: j.job,
            name: j.name,
            role: j.role,
            kind: j.kind,
            state: j.state,
            phase: j.phase,
            items_total: j.items_total,
            items_finished: j.items_finished,
            items_failed: j.items_failed,
            items_running: j.items_running,
            items_by_agent: j.items_by_agent.into_iter().collect(),
            exit_code: j.exit_code,
            reason: j.reason,
            message: j.message,
            framework_id: j.framework,
            submitted_at: rfc3339(j.submitted_us),
            finished_at: j.finished_us.and_then(rfc3339),
            elapsed_us,
            output_store: j.output_store,
            items_stored: j.items_stored,
            tasks: j.tasks.into_iter().map(TaskJson::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time_are_rfc_3339_and_spans_carry_their_unit() {
        let job = v1::JobView { job: "j".into(), submitted_us: 1_000_000, finished_us: Some(3_500_000), ..Default::default() };
        let value = serde_json::to_value(JobJson::from(job)).unwrap();
        assert_eq!(value["submitted_at"], "1970-01-01T00:00:01Z");
        assert_eq!(value["finished_at"], "1970-01-01T00:00:03.5Z");
        assert_eq!(value["elapsed_us"], 2_500_000);
        assert!(value["exit_code"].is_null() && value["items_by_agent"].is_object());
    }
}
