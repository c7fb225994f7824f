//! One agent.

use super::ResourcesView;
use crate::time::rfc3339;
use serde::Serialize;
use smalti_proto::v1;
use std::collections::BTreeMap;

#[derive(Debug, Serialize)]
pub(crate) struct AgentView {
    pub(crate) id: String,
    pub(crate) hostname: String,
    pub(crate) state: String,
    pub(crate) total: ResourcesView,
    pub(crate) used: ResourcesView,
    pub(crate) offered: ResourcesView,
    pub(crate) free: ResourcesView,
    /// What the agent, its executors and its compiler take off the top; in none of the four above.
    pub(crate) overhead: ResourcesView,
    pub(crate) attributes: BTreeMap<String, String>,
    /// What the memory of the overhead consists of, in bytes.
    pub(crate) overhead_memory: BTreeMap<String, u64>,
    /// Layer by layer, with a word on each that is off.
    pub(crate) isolation: BTreeMap<String, String>,
    pub(crate) executors: Vec<ExecutorView>,
    /// Frameworks whose executors died one after the other of late.
    pub(crate) executor_losses: Vec<LossView>,
    /// Tasks and array parts on it.
    pub(crate) tasks: u32,
    pub(crate) registered_at: Option<String>,
    /// Since when the master has not heard of it; null while it is connected.
    pub(crate) away_since: Option<String>,
    pub(crate) boot_id: String,
    /// What the master and the agent count: frames of each kind, items.
    pub(crate) counters: BTreeMap<String, u64>,
}

/// What one framework has lost on an agent.
#[derive(Debug, Serialize)]
pub(crate) struct LossView {
    pub(crate) framework_id: String,
    /// Executors one after the other.
    pub(crate) count: u32,
    /// Of the last one.
    pub(crate) cause: String,
    /// No other is started for it before.
    pub(crate) not_before: Option<String>,
}

impl From<v1::ExecutorLosses> for LossView {
    fn from(loss: v1::ExecutorLosses) -> Self {
        Self { framework_id: loss.framework, count: loss.count, cause: loss.cause, not_before: rfc3339(loss.not_before_us) }
    }
}

/// One executor process of an agent.
#[derive(Debug, Serialize)]
pub(crate) struct ExecutorView {
    pub(crate) id: String,
    pub(crate) framework_id: String,
    pub(crate) role: Option<String>,
    /// `shared` by the tasks of its framework, `pooled` or `networked` for one task alone.
    pub(crate) kind: String,
    pub(crate) state: String,
    /// On its node; none while it starts.
    pub(crate) pid: Option<i32>,
    pub(crate) uid: Option<u32>,
    pub(crate) slots: u32,
    pub(crate) busy_slots: u32,
    /// In bytes.
    pub(crate) memory_limit: u64,
    pub(crate) allocator: String,
    pub(crate) memory_reset: String,
    /// What the kernel shows of its walls: `on …` or `off: why`.
    pub(crate) layers: BTreeMap<String, String>,
}

impl From<v1::ExecutorReport> for ExecutorView {
    fn from(report: v1::ExecutorReport) -> Self {
        Self {
            id: report.id,
            framework_id: report.framework,
            role: Some(report.role).filter(|role| !role.is_empty()),
            kind: report.kind,
            state: report.state,
            pid: Some(report.pid).filter(|pid| *pid > 0),
            uid: report.uid,
            slots: report.slots,
            busy_slots: report.busy_slots,
            memory_limit: report.memory_limit,
            allocator: report.allocator,
            memory_reset: report.memory_reset,
            layers: report.layers.into_iter().collect(),
        }
    }
}

impl From<v1::AgentStatus> for AgentView {
    fn from(status: v1::AgentStatus) -> Self {
        let info = status.info.unwrap_or_default();
        Self {
            id: info.id,
            hostname: info.hostname,
            state: status.state,
            total: ResourcesView::new(info.total.as_ref()),
            used: ResourcesView::new(status.used.as_ref()),
            offered: ResourcesView::new(status.offered.as_ref()),
            free: ResourcesView::new(status.free.as_ref()),
            overhead: ResourcesView::new(info.overhead.as_ref()),
            attributes: info.attributes.into_iter().collect(),
            overhead_memory: status.overhead_memory.into_iter().collect(),
            isolation: info.isolation.into_iter().collect(),
            executors: status.executors.into_iter().map(ExecutorView::from).collect(),
            executor_losses: status.executor_losses.into_iter().map(LossView::from).collect(),
            tasks: status.tasks,
            registered_at: rfc3339(status.registered_us),
            away_since: status.away_since_us.and_then(rfc3339),
            boot_id: info.boot_id,
            counters: status.counters.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promised_keys_are_there() {
        let value = serde_json::to_value(AgentView::from(v1::AgentStatus::default())).unwrap();
        for key in ["id", "hostname", "state", "total", "used", "offered", "free", "attributes", "isolation", "executors"] {
            assert!(value.get(key).is_some(), "{key}");
        }
        let executors = vec![v1::ExecutorReport { id: "E1".into(), slots: 4, ..Default::default() }];
        let value_with = serde_json::to_value(AgentView::from(v1::AgentStatus { executors, ..Default::default() })).unwrap();
        for key in [
            "id",
            "framework_id",
            "role",
            "kind",
            "pid",
            "uid",
            "slots",
            "busy_slots",
            "memory_limit",
            "allocator",
            "memory_reset",
            "layers",
        ] {
            assert!(value_with["executors"][0].get(key).is_some(), "{key}");
        }
        assert!(value["attributes"].is_object() && value["isolation"].is_object());
    }
}
