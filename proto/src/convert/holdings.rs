//! What agents hold, and where they are told to fetch from.

use super::{ConvertError, Problem, Result, at};
use crate::v1;
use smalti_types::{HoldingKey, HoldingsChange, HoldingsNews, LocateOutcome, MAX_HOLDINGS, Role};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// An agent's address as others reach it; `None` for the empty text.
///
/// # Errors
/// When it is no address with a port, or one that cannot be a node of the cluster.
pub fn peer_address(text: &str) -> Result<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let fail = |why| at("HoldingsNews", "address").fail(Problem::Invalid(why));
    let address: SocketAddr = text.parse().map_err(|_| fail("is not ADDRESS:PORT"))?;
    let ip = address.ip().to_canonical();
    let link_local = match ip {
        std::net::IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() || link_local {
        return Err(fail("is not the address of a node"));
    }
    Ok(Some(address))
}

pub(super) fn keys(keys: Vec<u64>, message: &'static str, field: &'static str) -> Result<Vec<HoldingKey>> {
    at(message, field).count(keys.len(), MAX_HOLDINGS)?;
    Ok(keys.into_iter().map(HoldingKey).collect())
}

impl TryFrom<v1::HoldingsNews> for HoldingsNews {
    type Error = ConvertError;
    fn try_from(m: v1::HoldingsNews) -> Result<Self> {
        at("HoldingsNews", "changes").count(m.changes.len(), MAX_HOLDINGS)?;
        let mut changes: BTreeMap<Role, HoldingsChange> = BTreeMap::new();
        for change in m.changes {
            let added = keys(change.added, "HoldingsChange", "added")?;
            let removed = keys(change.removed, "HoldingsChange", "removed")?;
            changes.insert(at("HoldingsChange", "role").id(&change.role)?, HoldingsChange { added, removed });
        }
        Ok(Self { all: m.all, address: peer_address(&m.address)?, changes })
    }
}

impl From<HoldingsNews> for v1::HoldingsNews {
    fn from(news: HoldingsNews) -> Self {
        let wire = |keys: Vec<HoldingKey>| keys.into_iter().map(|key| key.0).collect();
        let changes = news.changes.into_iter().map(|(role, change)| v1::HoldingsChange {
            role: role.into(),
            added: wire(change.added),
            removed: wire(change.removed),
        });
        Self { all: news.all, address: news.address.map(|a| a.to_string()).unwrap_or_default(), changes: changes.collect() }
    }
}

impl From<v1::LocateOutcome> for LocateOutcome {
    fn from(outcome: v1::LocateOutcome) -> Self {
        match outcome {
            v1::LocateOutcome::LocateGivenUp => Self::GivenUp,
            v1::LocateOutcome::LocateHeld => Self::Held,
            v1::LocateOutcome::LocateFailed => Self::Failed,
        }
    }
}

impl From<LocateOutcome> for v1::LocateOutcome {
    fn from(outcome: LocateOutcome) -> Self {
        match outcome {
            LocateOutcome::GivenUp => Self::LocateGivenUp,
            LocateOutcome::Held => Self::LocateHeld,
            LocateOutcome::Failed => Self::LocateFailed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::strategies::holdings_news;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_sent_is_what_arrives(news in holdings_news()) {
            prop_assert_eq!(HoldingsNews::try_from(v1::HoldingsNews::from(news.clone())), Ok(news));
        }
    }

    #[test]
    fn an_agents_address_is_that_of_a_node() {
        assert_eq!(peer_address(""), Ok(None));
        for good in ["127.0.0.1:7000", "10.0.0.1:1", "[::1]:7000", "[fd00::1]:7000"] {
            assert_eq!(peer_address(good).unwrap().unwrap().to_string(), good);
        }
        for bad in [
            "x",
            "host:80",
            "10.0.0.1",
            "10.0.0.1:0",
            "0.0.0.0:80",
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "224.0.0.1:80",
            "[fe80::1]:80",
        ] {
            assert!(peer_address(bad).is_err(), "{bad}");
        }
    }
}
