//! Sets of item indices as sorted ranges: a million items that are all alike are one range.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Items `first..end` of a task array (`end` is one past the last).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ItemRange {
    /// First index.
    pub first: u64,
    /// One past the last index.
    pub end: u64,
}

/// A set of item indices. Invariant: ranges are sorted, not empty, disjoint and not adjacent. `u64::MAX` is no index (a range could
/// not end behind it) and is left out.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(from = "Vec<ItemRange>", into = "Vec<ItemRange>")]
pub struct ItemSet {
    ranges: Vec<ItemRange>,
}

impl From<ItemSet> for Vec<ItemRange> {
    fn from(set: ItemSet) -> Self {
        set.ranges
    }
}

impl From<Vec<ItemRange>> for ItemSet {
    fn from(ranges: Vec<ItemRange>) -> Self {
        ranges.into_iter().collect()
    }
}

impl FromIterator<ItemRange> for ItemSet {
    fn from_iter<I: IntoIterator<Item = ItemRange>>(iter: I) -> Self {
        let mut all: Vec<_> = iter.into_iter().filter(|r| r.first < r.end).collect();
        all.sort_unstable();
        let mut ranges: Vec<ItemRange> = Vec::with_capacity(all.len());
        for r in all {
            match ranges.last_mut() {
                Some(p) if r.first <= p.end => p.end = p.end.max(r.end),
                _ => ranges.push(r),
            }
        }
        Self { ranges }
    }
}

impl FromIterator<u64> for ItemSet {
    fn from_iter<I: IntoIterator<Item = u64>>(iter: I) -> Self {
        iter.into_iter().map(|i| ItemRange { first: i, end: i.saturating_add(1) }).collect()
    }
}

impl ItemSet {
    /// Items `first..end`.
    #[must_use]
    pub fn range(first: u64, end: u64) -> Self {
        std::iter::once(ItemRange { first, end }).collect()
    }

    /// The ranges, sorted and disjoint.
    #[must_use]
    pub fn ranges(&self) -> &[ItemRange] {
        &self.ranges
    }

    /// How many items.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|r| r.end - r.first).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The lowest index.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.ranges.first().map(|r| r.first)
    }

    /// One past the highest index; zero for the empty set.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |r| r.end)
    }

    /// Every index in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(|r| r.first..r.end)
    }

    /// Whether `item` is in the set.
    #[must_use]
    pub fn contains(&self, item: u64) -> bool {
        let i = self.ranges.partition_point(|r| r.end <= item);
        self.ranges.get(i).is_some_and(|r| r.first <= item)
    }

    /// Whether no item is in both.
    #[must_use]
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.intersection(other).is_empty()
    }

    /// Whether every item of `other` is in this set.
    #[must_use]
    pub fn contains_all(&self, other: &Self) -> bool {
        other.ranges.iter().all(|o| {
            let i = self.ranges.partition_point(|r| r.end < o.end);
            self.ranges.get(i).is_some_and(|r| r.first <= o.first)
        })
    }

    /// Adds one item; cheap when it continues a range.
    pub fn insert(&mut self, item: u64) {
        if item == u64::MAX {
            return;
        }
        let i = self.ranges.partition_point(|r| r.end < item);
        match self.ranges.get_mut(i) {
            Some(r) if r.first <= item && item < r.end => {}
            Some(r) if r.end == item => {
                r.end += 1;
                if self.ranges.get(i + 1).is_some_and(|n| n.first == item + 1) {
                    self.ranges[i].end = self.ranges[i + 1].end;
                    self.ranges.remove(i + 1);
                }
            }
            Some(r) if r.first == item + 1 => r.first = item,
            _ => self.ranges.insert(i, ItemRange { first: item, end: item + 1 }),
        }
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        if self.is_empty() {
            *self = other.clone();
        } else {
            *self = self.union(other);
        }
    }

    /// Items in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.ranges.iter().chain(&other.ranges).copied().collect()
    }

    /// Items in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut i, mut k, mut ranges) = (0, 0, Vec::new());
        while let (Some(a), Some(b)) = (self.ranges.get(i), other.ranges.get(k)) {
            let (first, end) = (a.first.max(b.first), a.end.min(b.end));
            if first < end {
                ranges.push(ItemRange { first, end });
            }
            if a.end <= b.end { i += 1 } else { k += 1 }
        }
        Self { ranges }
    }

    /// Items in this set and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let (mut k, mut ranges) = (0, Vec::new());
        for r in &self.ranges {
            let mut at = r.first;
            while other.ranges.get(k).is_some_and(|o| o.end <= at) {
                k += 1;
            }
            let mut j = k;
            while let Some(o) = other.ranges.get(j).filter(|o| o.first < r.end) {
                if at < o.first {
                    ranges.push(ItemRange { first: at, end: o.first });
                }
                at = at.max(o.end);
                j += 1;
            }
            if at < r.end {
                ranges.push(ItemRange { first: at, end: r.end });
            }
        }
        Self { ranges }
    }

    /// Removes and returns the lowest `n` items (fewer when there are fewer).
    pub fn take_first(&mut self, n: u64) -> Self {
        let mut taken = Vec::new();
        let mut left = n;
        let mut whole = 0;
        for r in &mut self.ranges {
            let len = r.end - r.first;
            if len <= left {
                taken.push(*r);
                left -= len;
                whole += 1;
            } else {
                if left > 0 {
                    taken.push(ItemRange { first: r.first, end: r.first + left });
                    r.first += left;
                }
                break;
            }
        }
        self.ranges.drain(..whole);
        Self { ranges: taken }
    }

    /// Removes and returns the highest `n` items (fewer when there are fewer).
    pub fn take_last(&mut self, n: u64) -> Self {
        let keep = self.len().saturating_sub(n);
        let first = self.take_first(keep);
        std::mem::replace(self, first)
    }
}

impl fmt::Display for ItemSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.ranges.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if r.end - r.first == 1 {
                write!(f, "{comma}{}", r.first)?;
            } else {
                write!(f, "{comma}{}-{}", r.first, r.end - 1)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ItemSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set() -> impl Strategy<Value = ItemSet> {
        proptest::collection::vec((0_u64..100, 0_u64..10), 0..10)
            .prop_map(|v| v.into_iter().map(|(first, n)| ItemRange { first, end: first + n }).collect())
    }

    fn plain(s: &ItemSet) -> BTreeSet<u64> {
        s.iter().collect()
    }

    #[test]
    fn the_highest_number_is_no_index() {
        let mut set: ItemSet = [u64::MAX - 1, u64::MAX].into_iter().collect();
        set.insert(u64::MAX);
        assert_eq!(set, ItemSet::range(u64::MAX - 1, u64::MAX));
    }

    proptest! {
        #[test]
        fn arithmetic_agrees_with_sets_of_numbers(a in set(), b in set(), item in 0_u64..110) {
            let (x, y) = (plain(&a), plain(&b));
            prop_assert_eq!(plain(&a.union(&b)), x.union(&y).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(plain(&a.difference(&b)), x.difference(&y).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(plain(&a.intersection(&b)), x.intersection(&y).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(a.contains(item), x.contains(&item));
            prop_assert_eq!(a.contains_all(&b), y.is_subset(&x));
            prop_assert_eq!(a.len(), x.len() as u64);
        }

        #[test]
        fn insert_keeps_the_ranges_sorted_disjoint_and_joined(mut a in set(), items in proptest::collection::vec(0_u64..110, 0..40)) {
            let mut x = plain(&a);
            for i in items {
                a.insert(i);
                x.insert(i);
            }
            prop_assert_eq!(&a, &x.iter().copied().collect::<ItemSet>());
        }

        #[test]
        fn taking_splits_and_loses_nothing(a in set(), n in 0_u64..120) {
            let (mut low, mut high) = (a.clone(), a.clone());
            let first = low.take_first(n);
            prop_assert_eq!(first.len(), n.min(a.len()));
            prop_assert_eq!(first.union(&low), a.clone());
            prop_assert!(first.end() <= low.first().unwrap_or(u64::MAX));
            let last = high.take_last(n);
            prop_assert_eq!(last.len(), n.min(a.len()));
            prop_assert_eq!(last.union(&high), a);
        }
    }
}
