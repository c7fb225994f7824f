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
    /// What its caches hold, by kind: bundles, compiled, inputs.
    pub(crate) caches: BTreeMap<String, CacheView>,
    /// Which bundles and inputs it holds, by role: the first sixteen digits of their BLAKE3, or of what else pins them. At most 512, those
    /// that were used last.
    pub(crate) holdings: BTreeMap<String, Vec<String>>,
    /// Its disk is too full for more tasks.
    pub(crate) disk_full: bool,
    /// What the master and the agent count: frames of each kind, items.
    pub(crate) counters: BTreeMap<String, u64>,
}

/// What one kind takes of an agent's disk.
#[derive(Debug, Default, Serialize)]
pub(crate) struct CacheView {
    pub(crate) bytes: u64,
    /// At most.
    pub(crate) budget: u64,
    /// Files and directories.
    pub(crate) entries: u64,
}

/// Takes what agents count of their caches out of their counters: `cache_KIND_FIGURE`.
fn caches(counters: &mut BTreeMap<String, u64>) -> BTreeMap<String, CacheView> {
    let mut caches: BTreeMap<String, CacheView> = BTreeMap::new();
    counters.retain(|name, n| {
        let Some((kind, figure)) = name.strip_prefix("cache_").and_then(|rest| rest.rsplit_once('_')) else { return true };
        let place = |cache: &mut CacheView| match figure {
            "bytes" => cache.bytes = *n,
            "budget" => cache.budget = *n,
            "entries" => cache.entries = *n,
            _ => {}
        };
        place(caches.entry(kind.to_owned()).or_default());
        false
    });
    caches
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
        let mut counters: BTreeMap<String, u64> = status.counters.into_iter().collect();
        let caches = caches(&mut counters);
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
            caches,
            holdings: status
                .holdings
                .into_iter()
                .map(|held| (held.role, held.added.into_iter().map(|key| format!("{:016x}", key.swap_bytes())).collect()))
                .collect(),
            disk_full: counters.remove("disk_full").is_some_and(|n| n > 0),
            counters,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_shown_by_kind() {
        let counters = [("cache_bundles_bytes", 5), ("cache_bundles_budget", 9), ("cache_inputs_entries", 2), ("disk_full", 1), ("x", 3)];
        let status = v1::AgentStatus { counters: counters.map(|(k, n)| (k.to_owned(), n)).into(), ..Default::default() };
        let view = AgentView::from(status);
        assert_eq!((view.caches["bundles"].bytes, view.caches["bundles"].budget, view.caches["inputs"].entries), (5, 9, 2));
        assert!(view.disk_full && view.counters.len() == 1);
    }

    #[test]
    fn what_is_held_is_shown_as_digests_begin() {
        let digest = smalti_types::Digest::of(b"x");
        let held = v1::HoldingsChange { role: "r".into(), added: vec![smalti_types::HoldingKey::of_digest(&digest).0], removed: vec![] };
        let view = AgentView::from(v1::AgentStatus { holdings: vec![held], ..Default::default() });
        assert_eq!(view.holdings["r"], [digest.to_hex()[..16].to_owned()]);
    }

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
