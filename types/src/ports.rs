//! Port ranges: a sorted set of disjoint, inclusive ranges.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, not below `first`.
    pub last: u16,
}

/// Why a text is not a set of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a list of ports: write it like 31000-32000 or 8080,9000-9010, with ports from 1 to 65535")]
pub struct PortsError(pub String);

/// A set of ports. Invariant: ranges are sorted, disjoint and not adjacent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(from = "Vec<PortRange>", into = "Vec<PortRange>")]
pub struct PortSet {
    ranges: Vec<PortRange>,
}

impl From<PortSet> for Vec<PortRange> {
    fn from(set: PortSet) -> Self {
        set.ranges
    }
}

impl From<Vec<PortRange>> for PortSet {
    fn from(ranges: Vec<PortRange>) -> Self {
        ranges.into_iter().collect()
    }
}

impl FromIterator<PortRange> for PortSet {
    /// Joins overlapping and adjacent ranges; ranges with `last < first` are empty and dropped.
    fn from_iter<I: IntoIterator<Item = PortRange>>(iter: I) -> Self {
        let mut all: Vec<_> = iter.into_iter().filter(|r| r.first <= r.last).collect();
        all.sort_unstable();
        let mut ranges: Vec<PortRange> = Vec::with_capacity(all.len());
        for r in all {
            match ranges.last_mut() {
                Some(p) if u32::from(r.first) <= u32::from(p.last) + 1 => p.last = p.last.max(r.last),
                _ => ranges.push(r),
            }
        }
        Self { ranges }
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(iter: I) -> Self {
        iter.into_iter().map(|port| PortRange { first: port, last: port }).collect()
    }
}

impl PortSet {
    /// The ranges, sorted and disjoint.
    #[must_use]
    pub fn ranges(&self) -> &[PortRange] {
        &self.ranges
    }

    /// How many ports.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.ranges.iter().map(|r| u32::from(r.last) - u32::from(r.first) + 1).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Every port in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ranges.iter().flat_map(|r| r.first..=r.last)
    }

    /// Whether every port of `other` is in this set.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        other.ranges.iter().all(|o| self.ranges.iter().any(|r| r.first <= o.first && o.last <= r.last))
    }

    /// Whether no port is in both.
    #[must_use]
    pub fn is_disjoint(&self, other: &Self) -> bool {
        !self.ranges.iter().any(|a| other.ranges.iter().any(|b| a.first <= b.last && b.first <= a.last))
    }

    /// Ports in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.ranges.iter().chain(&other.ranges).copied().collect()
    }

    /// Ports in this set and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut left = self.ranges.clone();
        for o in &other.ranges {
            let mut next = Vec::with_capacity(left.len() + 1);
            for r in left {
                if o.last < r.first || r.last < o.first {
                    next.push(r);
                    continue;
                }
                if r.first < o.first {
                    next.push(PortRange { first: r.first, last: o.first - 1 });
                }
                if o.last < r.last {
                    next.push(PortRange { first: o.last + 1, last: r.last });
                }
            }
            left = next;
        }
        Self { ranges: left }
    }

    /// The ports that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.difference(&self.difference(other))
    }

    /// The lowest `n` ports, or `None` when there are fewer.
    #[must_use]
    pub fn take(&self, n: u32) -> Option<Self> {
        if self.len() < n {
            return None;
        }
        Some(self.iter().take(n as usize).collect())
    }
}

impl FromStr for PortSet {
    type Err = PortsError;
    fn from_str(s: &str) -> Result<Self, PortsError> {
        let bad = || PortsError(s.into());
        s.split(',')
            .map(str::trim)
            .filter(|p| !p.is_empty())
            .map(|part| {
                let (a, b) = part.split_once('-').unwrap_or((part, part));
                let first: u16 = a.trim().parse().map_err(|_| bad())?;
                let last: u16 = b.trim().parse().map_err(|_| bad())?;
                if first == 0 || last < first { Err(bad()) } else { Ok(PortRange { first, last }) }
            })
            .collect()
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.ranges.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if r.first == r.last {
                write!(f, "{comma}{}", r.first)?;
            } else {
                write!(f, "{comma}{}-{}", r.first, r.last)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set() -> impl Strategy<Value = PortSet> {
        proptest::collection::vec((1_u16..200, 0_u16..20), 0..8)
            .prop_map(|v| v.into_iter().map(|(first, n)| PortRange { first, last: first + n }).collect())
    }

    proptest! {
        #[test]
        fn arithmetic_agrees_with_sets_of_numbers(a in set(), b in set()) {
            let plain = |s: &PortSet| s.iter().collect::<BTreeSet<_>>();
            let (x, y) = (plain(&a), plain(&b));
            prop_assert_eq!(plain(&a.union(&b)), x.union(&y).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(plain(&a.difference(&b)), x.difference(&y).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(a.contains(&b), y.is_subset(&x));
            prop_assert_eq!(a.is_disjoint(&b), x.is_disjoint(&y));
            prop_assert_eq!(a.difference(&b).union(&b), a.union(&b));
            prop_assert_eq!(a.to_string().parse::<PortSet>().unwrap(), a);
        }
    }

    #[test]
    fn bad_texts_are_refused() {
        for bad in ["0", "70000", "5-3", "a", "1-2-3"] {
            assert!(bad.parse::<PortSet>().is_err(), "{bad}");
        }
    }
}
