//! Frameworks, the offers they hold, and the roles they are in.

use super::ResourcesView;
use crate::time::rfc3339;
use serde::Serialize;
use smalti_proto::convert::DEFAULT_FAILOVER_TIMEOUT;
use smalti_proto::v1;
use std::collections::BTreeMap;

#[derive(Debug, Serialize)]
pub(crate) struct FrameworkView {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) principal: String,
    pub(crate) role: String,
    pub(crate) state: String,
    pub(crate) used: ResourcesView,
    pub(crate) offered: ResourcesView,
    /// The largest of its shares of the cluster's resources, 0 to 1.
    pub(crate) dominant_share: f64,
    pub(crate) tasks: u32,
    pub(crate) registered_at: Option<String>,
    pub(crate) failover_timeout_ms: u64,
    /// When it is removed and its tasks are killed unless its scheduler comes back; null while its scheduler is there.
    pub(crate) failover_deadline: Option<String>,
    /// Updates that wait in the master for its acknowledgement.
    pub(crate) pending_bytes: u64,
    pub(crate) services: BTreeMap<String, String>,
}

impl From<v1::FrameworkStatus> for FrameworkView {
    fn from(status: v1::FrameworkStatus) -> Self {
        let info = status.info.unwrap_or_default();
        Self {
            id: status.id,
            name: info.name,
            principal: info.principal,
            role: info.role,
            state: status.state,
            used: ResourcesView::new(status.used.as_ref()),
            offered: ResourcesView::new(status.offered.as_ref()),
            dominant_share: status.dominant_share,
            tasks: status.tasks,
            registered_at: rfc3339(status.registered_us),
            failover_timeout_ms: info.failover_timeout_ms.unwrap_or(DEFAULT_FAILOVER_TIMEOUT.0),
            failover_deadline: status.failover_deadline_us.and_then(rfc3339),
            pending_bytes: status.pending_bytes,
            services: info.services.into_iter().collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct OfferView {
    pub(crate) id: String,
    pub(crate) framework_id: String,
    pub(crate) role: String,
    pub(crate) agent_id: String,
    pub(crate) hostname: String,
    pub(crate) resources: ResourcesView,
    pub(crate) attributes: BTreeMap<String, String>,
}

impl From<v1::Offer> for OfferView {
    fn from(offer: v1::Offer) -> Self {
        let id = offer.id.unwrap_or_default();
        let id = smalti_types::OfferId { epoch: smalti_types::MasterEpoch(id.epoch), number: id.number };
        Self {
            id: id.to_string(),
            framework_id: offer.framework,
            role: offer.role,
            agent_id: offer.agent,
            hostname: offer.hostname,
            resources: ResourcesView::new(offer.resources.as_ref()),
            attributes: offer.attributes.into_iter().collect(),
        }
    }
}

/// A role: known because frameworks are in it.
#[derive(Debug, Serialize)]
pub(crate) struct RoleView {
    pub(crate) name: String,
    pub(crate) frameworks: Vec<String>,
    pub(crate) used: ResourcesView,
    pub(crate) offered: ResourcesView,
    pub(crate) tasks: u64,
}

impl RoleView {
    /// Sums the frameworks of each role; sorted by name.
    pub(crate) fn of_frameworks(frameworks: &[v1::FrameworkStatus]) -> Vec<Self> {
        let mut roles: BTreeMap<&str, (v1::Resources, v1::Resources, Vec<String>, u64)> = BTreeMap::new();
        for framework in frameworks {
            let role = framework.info.as_ref().map_or("", |i| i.role.as_str());
            let (used, offered, ids, tasks) = roles.entry(role).or_default();
            add(used, framework.used.as_ref());
            add(offered, framework.offered.as_ref());
            ids.push(framework.id.clone());
            *tasks += u64::from(framework.tasks);
        }
        roles
            .into_iter()
            .map(|(name, (used, offered, frameworks, tasks))| Self {
                name: name.to_owned(),
                frameworks,
                used: ResourcesView::new(Some(&used)),
                offered: ResourcesView::new(Some(&offered)),
                tasks,
            })
            .collect()
    }
}

/// Sums for display. Port ranges of different agents may be equal numbers: they are listed side by side, not joined.
fn add(sum: &mut v1::Resources, part: Option<&v1::Resources>) {
    let Some(part) = part else { return };
    sum.milli_cpus = sum.milli_cpus.saturating_add(part.milli_cpus);
    sum.mem_bytes = sum.mem_bytes.saturating_add(part.mem_bytes);
    sum.disk_bytes = sum.disk_bytes.saturating_add(part.disk_bytes);
    sum.ports.extend(part.ports.iter().copied());
    for (name, milli) in &part.custom_milli {
        let slot = sum.custom_milli.entry(name.clone()).or_default();
        *slot = slot.saturating_add(*milli);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framework(id: &str, role: &str, milli_cpus: u64) -> v1::FrameworkStatus {
        let info = v1::FrameworkInfo { role: role.into(), ..Default::default() };
        let used = v1::Resources { milli_cpus, ..Default::default() };
        v1::FrameworkStatus { id: id.into(), info: Some(info), used: Some(used), tasks: 1, ..Default::default() }
    }

    #[test]
    fn a_role_is_the_sum_of_its_frameworks() {
        let all = [framework("F1", "b", 500), framework("F2", "a", 250), framework("F3", "b", 1000)];
        let roles = RoleView::of_frameworks(&all);
        assert_eq!(roles.iter().map(|r| (r.name.as_str(), r.used.cpus, r.tasks)).collect::<Vec<_>>(), [("a", 0.25, 1), ("b", 1.5, 2)]);
        assert_eq!(roles[1].frameworks, ["F1", "F3"]);
    }

    #[test]
    fn an_offer_has_one_text_as_its_id() {
        let offer = v1::Offer { id: Some(v1::OfferId { epoch: 255, number: 3 }), ..Default::default() };
        let value = serde_json::to_value(OfferView::from(offer)).unwrap();
        assert_eq!(value["id"], "ff-O3");
        assert!(value["framework_id"].is_string() && value["agent_id"].is_string() && value["resources"]["ports"].is_array());
    }
}
