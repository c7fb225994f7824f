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
    /// Layer by layer, with a word on each that is off.
    pub(crate) isolation: BTreeMap<String, String>,
    /// Tasks and array parts on it.
    pub(crate) tasks: u32,
    pub(crate) registered_at: Option<String>,
    pub(crate) boot_id: String,
    /// What the master and the agent count: frames of each kind, items.
    pub(crate) counters: BTreeMap<String, u64>,
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
            isolation: info.isolation.into_iter().collect(),
            tasks: status.tasks,
            registered_at: rfc3339(status.registered_us),
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
        for key in ["id", "hostname", "state", "total", "used", "offered", "free", "attributes", "isolation"] {
            assert!(value.get(key).is_some(), "{key}");
        }
        assert!(value["attributes"].is_object() && value["isolation"].is_object());
    }
}
