//! Resources, port ranges and item sets.

use super::{ConvertError, MAX_ITEM_END, MAX_LABEL_LEN, MAX_LIST, MAX_SHORT_LIST, Problem, Result, at};
use crate::v1;
use smalti_types::{Bytes, ItemRange, ItemSet, MilliCpus, MilliUnits, PortRange, Resources};

impl TryFrom<v1::PortRange> for PortRange {
    type Error = ConvertError;
    fn try_from(m: v1::PortRange) -> Result<Self> {
        let here = at("PortRange", "last");
        let last = u16::try_from(m.last).map_err(|_| here.fail(Problem::TooLarge { value: m.last.into(), max: u16::MAX.into() }))?;
        match u16::try_from(m.first) {
            Ok(first) if first > 0 && first <= last => Ok(Self { first, last }),
            _ => Err(at("PortRange", "first").fail(Problem::Invalid("must be from 1 to the range's last port"))),
        }
    }
}

impl From<PortRange> for v1::PortRange {
    fn from(r: PortRange) -> Self {
        Self { first: r.first.into(), last: r.last.into() }
    }
}

impl TryFrom<v1::Resources> for Resources {
    type Error = ConvertError;
    fn try_from(m: v1::Resources) -> Result<Self> {
        let here = at("Resources", "ports");
        let ports: Vec<PortRange> = here.list(m.ports, MAX_SHORT_LIST)?;
        if ports.windows(2).any(|w| w[1].first <= w[0].last) {
            return Err(here.fail(Problem::Unsorted));
        }
        let mut resources = Self {
            cpus: MilliCpus(at("Resources", "milli_cpus").amount(m.milli_cpus)?),
            mem: Bytes(at("Resources", "mem_bytes").amount(m.mem_bytes)?),
            disk: Bytes(at("Resources", "disk_bytes").amount(m.disk_bytes)?),
            ports: ports.into(),
            ..Self::default()
        };
        let here = at("Resources", "custom_milli");
        here.count(m.custom_milli.len(), MAX_SHORT_LIST)?;
        for (name, amount) in m.custom_milli {
            let name = here.text(name, MAX_LABEL_LEN)?;
            resources.set_custom(&name, MilliUnits(here.amount(amount)?));
        }
        Ok(resources)
    }
}

impl From<Resources> for v1::Resources {
    fn from(r: Resources) -> Self {
        Self {
            milli_cpus: r.cpus.0,
            mem_bytes: r.mem.0,
            disk_bytes: r.disk.0,
            ports: r.ports.ranges().iter().map(|p| (*p).into()).collect(),
            custom_milli: r.custom.into_iter().map(|(name, amount)| (name.as_ref().to_owned(), amount.0)).collect(),
        }
    }
}

impl TryFrom<v1::ItemSet> for ItemSet {
    type Error = ConvertError;
    fn try_from(m: v1::ItemSet) -> Result<Self> {
        let here = at("ItemSet", "ranges");
        here.count(m.ranges.len(), MAX_LIST)?;
        let mut end = 0;
        for r in &m.ranges {
            if r.first < end || r.first >= r.end {
                return Err(here.fail(Problem::Unsorted));
            }
            end = here.bound(r.end, MAX_ITEM_END)?;
        }
        Ok(m.ranges.into_iter().map(|r| ItemRange { first: r.first, end: r.end }).collect())
    }
}

impl From<ItemSet> for v1::ItemSet {
    fn from(set: ItemSet) -> Self {
        Self { ranges: set.ranges().iter().map(|r| v1::ItemRange { first: r.first, end: r.end }).collect() }
    }
}

/// Absent means empty: an empty set need not be sent.
pub(super) fn item_set(m: Option<v1::ItemSet>) -> Result<ItemSet> {
    m.map(ItemSet::try_from).transpose().map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::super::strategies::{item_set, resources};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_sent_is_what_arrives(r in resources(), s in item_set()) {
            prop_assert_eq!(Resources::try_from(v1::Resources::from(r.clone())), Ok(r));
            prop_assert_eq!(ItemSet::try_from(v1::ItemSet::from(s.clone())), Ok(s));
        }
    }

    #[test]
    fn bad_ranges_are_refused() {
        let ports = |list: &[(u32, u32)]| {
            let ports = list.iter().map(|&(first, last)| v1::PortRange { first, last }).collect();
            Resources::try_from(v1::Resources { ports, ..Default::default() })
        };
        assert!(ports(&[(1, 5), (7, 7)]).is_ok());
        for bad in [&[(0, 1)][..], &[(5, 4)], &[(1, 70_000)], &[(70_000, 70_001)], &[(5, 9), (1, 2)], &[(1, 5), (5, 6)]] {
            assert!(ports(bad).is_err(), "{bad:?}");
        }
        let items = |list: &[(u64, u64)]| {
            ItemSet::try_from(v1::ItemSet { ranges: list.iter().map(|&(first, end)| v1::ItemRange { first, end }).collect() })
        };
        assert_eq!(items(&[(0, 2), (2, 3)]), Ok(ItemSet::range(0, 3)));
        for bad in [&[(1, 1)][..], &[(2, 1)], &[(5, 6), (1, 2)], &[(1, 5), (4, 6)], &[(0, u64::MAX)]] {
            assert!(items(bad).is_err(), "{bad:?}");
        }
        let error = Resources::try_from(v1::Resources { milli_cpus: u64::MAX, ..Default::default() }).unwrap_err();
        assert_eq!(error.to_string(), "Resources.milli_cpus: 18446744073709551615 is more than 9223372036854775807");
    }
}
