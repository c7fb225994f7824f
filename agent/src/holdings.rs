//! What the master is told about the caches: what has come and gone since the last word on this connection.
//!
//! Owns what was said. Deliberately absent: what is held, and in whose name (the caches' own).

use smalti_proto::v1;
use smalti_types::{HoldingKey, HoldingsNews, MAX_HOLDINGS, Role};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// No two looks at the caches are closer together.
const PACE: Duration = Duration::from_millis(500);

/// Says what is new.
#[derive(Debug, Default)]
pub(crate) struct Teller {
    /// Where other agents can fetch from this one.
    address: Option<SocketAddr>,
    /// Whether there is a master that listens.
    open: bool,
    /// Whether it knows anything on this connection.
    begun: bool,
    said: BTreeSet<(Role, HoldingKey)>,
    not_before: Option<Instant>,
}

impl Teller {
    pub(crate) fn new(address: Option<SocketAddr>) -> Self {
        Self { address, ..Self::default() }
    }

    /// The connection is gone, or is a new one.
    pub(crate) fn close(&mut self) {
        *self = Self::new(self.address);
    }

    /// The master has taken the registration, and wants to know.
    pub(crate) fn open(&mut self) {
        self.open = true;
    }

    /// Whether it is time to look.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        if !self.open || self.not_before.is_some_and(|at| now < at) {
            return false;
        }
        self.not_before = Some(now + PACE);
        true
    }

    /// What is to be sent now that these are held, those that were used last first.
    pub(crate) fn news(&mut self, held: impl IntoIterator<Item = (Role, HoldingKey)>) -> Option<v1::HoldingsNews> {
        let mut now = BTreeSet::new();
        for one in held {
            if now.len() == MAX_HOLDINGS {
                break;
            }
            now.insert(one);
        }
        if self.begun && now == self.said {
            return None;
        }
        let mut news = HoldingsNews { all: !self.begun, address: self.address, ..HoldingsNews::default() };
        for (role, key) in now.difference(&self.said) {
            news.changes.entry(role.clone()).or_default().added.push(*key);
        }
        for (role, key) in self.said.difference(&now) {
            news.changes.entry(role.clone()).or_default().removed.push(*key);
        }
        (self.begun, self.said) = (true, now);
        Some(news.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_changed_is_said_and_all_of_it_on_a_new_connection() {
        let mut teller = Teller::new(Some("127.0.0.1:7".parse().unwrap()));
        let now = Instant::now();
        assert!(!teller.is_due(now), "nobody listens");
        teller.open();
        assert!(teller.is_due(now) && !teller.is_due(now) && teller.is_due(now + PACE));
        let held = |keys: &[u64]| keys.iter().map(|key| (Role::default(), HoldingKey(*key))).collect::<Vec<_>>();
        let news = teller.news(held(&[2, 1])).unwrap();
        assert!(news.all && news.address == "127.0.0.1:7" && news.changes[0].added == [1, 2]);
        assert_eq!(teller.news(held(&[1, 2])), None);
        let news = teller.news(held(&[2, 3])).unwrap();
        assert!(!news.all && news.changes[0].added == [3] && news.changes[0].removed == [1]);
        teller.close();
        teller.open();
        assert_eq!(teller.news(held(&[])).map(|n| (n.all, n.changes.len())), Some((true, 0)));
        let many: Vec<u64> = (0..2_000).collect();
        assert_eq!(teller.news(held(&many)).unwrap().changes[0].added.len(), MAX_HOLDINGS);
    }
}
