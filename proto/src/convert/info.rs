//! What frameworks and agents say about themselves, and offers.

use super::holdings::keys;
use super::{ConvertError, MAX_LABEL_LEN, Result, at, duration};
use crate::v1;
use smalti_types::{AgentInfo, Attributes, DurationMs, FrameworkInfo, Offer, Role};

/// The fail-over time of a framework that does not say one: a week. Zero must be asked for.
pub const DEFAULT_FAILOVER_TIMEOUT: DurationMs = DurationMs(7 * 24 * 3_600_000);

impl TryFrom<v1::FrameworkInfo> for FrameworkInfo {
    type Error = ConvertError;
    fn try_from(m: v1::FrameworkInfo) -> Result<Self> {
        Ok(Self {
            name: at("FrameworkInfo", "name").text(m.name, MAX_LABEL_LEN)?,
            principal: at("FrameworkInfo", "principal").text(m.principal, MAX_LABEL_LEN)?,
            role: if m.role.is_empty() { Role::default() } else { at("FrameworkInfo", "role").id(&m.role)? },
            failover_timeout: m.failover_timeout_ms.map_or(DEFAULT_FAILOVER_TIMEOUT, duration),
            services: at("FrameworkInfo", "services").labels(m.services)?,
        })
    }
}

impl From<FrameworkInfo> for v1::FrameworkInfo {
    fn from(i: FrameworkInfo) -> Self {
        Self {
            name: i.name,
            principal: i.principal,
            role: i.role.into(),
            failover_timeout_ms: Some(i.failover_timeout.0),
            services: i.services.into_iter().collect(),
        }
    }
}

impl TryFrom<v1::AgentInfo> for AgentInfo {
    type Error = ConvertError;
    fn try_from(m: v1::AgentInfo) -> Result<Self> {
        Ok(Self {
            id: at("AgentInfo", "id").id(&m.id)?,
            hostname: at("AgentInfo", "hostname").text(m.hostname, MAX_LABEL_LEN)?,
            total: at("AgentInfo", "total").get(m.total)?,
            overhead: at("AgentInfo", "overhead").get(m.overhead)?,
            attributes: Attributes(at("AgentInfo", "attributes").labels(m.attributes)?),
            isolation: at("AgentInfo", "isolation").labels(m.isolation)?,
            boot_id: at("AgentInfo", "boot_id").text(m.boot_id, MAX_LABEL_LEN)?,
            incarnation: m.incarnation,
        })
    }
}

impl From<AgentInfo> for v1::AgentInfo {
    fn from(i: AgentInfo) -> Self {
        Self {
            id: i.id.into(),
            hostname: i.hostname,
            total: Some(i.total.into()),
            overhead: Some(i.overhead.into()),
            attributes: i.attributes.0.into_iter().collect(),
            isolation: i.isolation.into_iter().collect(),
            boot_id: i.boot_id,
            incarnation: i.incarnation,
        }
    }
}

impl TryFrom<v1::Offer> for Offer {
    type Error = ConvertError;
    fn try_from(m: v1::Offer) -> Result<Self> {
        Ok(Self {
            id: at("Offer", "id").get(m.id)?,
            framework: at("Offer", "framework").id(&m.framework)?,
            role: at("Offer", "role").id(&m.role)?,
            agent: at("Offer", "agent").id(&m.agent)?,
            hostname: at("Offer", "hostname").text(m.hostname, MAX_LABEL_LEN)?,
            resources: at("Offer", "resources").get(m.resources)?,
            attributes: Attributes(at("Offer", "attributes").labels(m.attributes)?),
            holdings: keys(m.holdings, "Offer", "holdings")?,
        })
    }
}

impl From<Offer> for v1::Offer {
    fn from(o: Offer) -> Self {
        Self {
            id: Some(o.id.into()),
            framework: o.framework.into(),
            role: o.role.into(),
            agent: o.agent.into(),
            hostname: o.hostname,
            resources: Some(o.resources.into()),
            attributes: o.attributes.0.into_iter().collect(),
            holdings: o.holdings.into_iter().map(|key| key.0).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::strategies::{agent_info, framework_info, offer};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_sent_is_what_arrives(f in framework_info(), a in agent_info(), o in offer()) {
            prop_assert_eq!(FrameworkInfo::try_from(v1::FrameworkInfo::from(f.clone())), Ok(f));
            prop_assert_eq!(AgentInfo::try_from(v1::AgentInfo::from(a.clone())), Ok(a));
            prop_assert_eq!(Offer::try_from(v1::Offer::from(o.clone())), Ok(o));
        }
    }

    #[test]
    fn durable_is_the_default_and_zero_must_be_asked_for() {
        let read = |failover_timeout_ms| FrameworkInfo::try_from(v1::FrameworkInfo { failover_timeout_ms, ..Default::default() });
        assert_eq!(read(None).unwrap().failover_timeout, DEFAULT_FAILOVER_TIMEOUT);
        assert_eq!(read(Some(0)).unwrap().failover_timeout, DurationMs(0));
    }
}
