//! Leased items that wait for a slot. Pure: no locks, no clock.
//!
//! Owns their order (as leased, lowest first within a lease) and what belongs to each: attempt and split.

use smalti_types::Split;
use smalti_types::items::{ItemRange, ItemSet};
use std::collections::VecDeque;

/// Most leases that wait at once; the agent sends the next when one is half used up.
const MAX_LEASES: usize = 1024;

/// One item to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) item: u64,
    pub(crate) attempt: u32,
    pub(crate) split: Option<Split>,
}

#[derive(Debug)]
struct Chunk {
    ranges: VecDeque<ItemRange>,
    attempt: u32,
    /// Sorted by item.
    splits: Vec<Split>,
}

/// The leased items that no slot has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    chunks: VecDeque<Chunk>,
    len: u64,
}

impl Queue {
    /// How many items wait.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// Adds a lease. False: too many leases wait; nothing was added.
    pub(crate) fn push(&mut self, items: &ItemSet, attempt: u32, mut splits: Vec<Split>) -> bool {
        if items.is_empty() {
            return true;
        }
        if self.chunks.len() >= MAX_LEASES {
            return false;
        }
        splits.sort_unstable_by_key(|s| s.item);
        self.len = self.len.saturating_add(items.len());
        self.chunks.push_back(Chunk { ranges: items.ranges().iter().copied().collect(), attempt, splits });
        true
    }

    /// The next item.
    pub(crate) fn pop(&mut self) -> Option<Item> {
        let chunk = self.chunks.front_mut()?;
        let range = chunk.ranges.front_mut()?;
        let item = range.first;
        range.first += 1;
        let range_done = range.first >= range.end;
        let split = chunk.splits.binary_search_by_key(&item, |s| s.item).ok().and_then(|i| chunk.splits.get(i).copied());
        let attempt = chunk.attempt;
        if range_done {
            chunk.ranges.pop_front();
            if chunk.ranges.is_empty() {
                self.chunks.pop_front();
            }
        }
        self.len -= 1;
        Some(Item { item, attempt, split })
    }

    /// All that wait.
    pub(crate) fn items(&self) -> ItemSet {
        self.chunks.iter().flat_map(|chunk| chunk.ranges.iter().copied()).filter(|range| range.first < range.end).collect()
    }

    /// Takes up to `most` items away from the end.
    pub(crate) fn take_last(&mut self, most: u64) -> ItemSet {
        let mut left = most;
        let mut taken = Vec::new();
        while left > 0
            && let Some(chunk) = self.chunks.back_mut()
        {
            let Some(range) = chunk.ranges.back_mut() else {
                self.chunks.pop_back();
                continue;
            };
            let n = left.min(range.end - range.first);
            taken.push(ItemRange { first: range.end - n, end: range.end });
            range.end -= n;
            left -= n;
            self.len -= n;
            if range.first >= range.end {
                chunk.ranges.pop_back();
            }
            if chunk.ranges.is_empty() {
                self.chunks.pop_back();
            }
        }
        taken.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_leave_in_order_with_what_belongs_to_them() {
        let mut q = Queue::default();
        let split = |item| Split { item, input: 0, offset: item * 10, length: 10 };
        assert!(q.push(&[1, 2, 5].into_iter().collect(), 0, vec![split(5), split(1), split(2)]));
        assert!(q.push(&ItemSet::range(10, 12), 3, Vec::new()));
        assert_eq!(q.len(), 5);
        let all: Vec<_> = std::iter::from_fn(|| q.pop()).collect();
        assert_eq!(all.iter().map(|i| (i.item, i.attempt)).collect::<Vec<_>>(), [(1, 0), (2, 0), (5, 0), (10, 3), (11, 3)]);
        assert_eq!(all[2].split, Some(split(5)));
        assert_eq!(all[3].split, None);
        assert_eq!(q.len(), 0);
    }

    #[test]
    fn taking_back_loses_and_doubles_nothing() {
        for most in 0..12 {
            let mut q = Queue::default();
            q.push(&[0, 1, 2, 6, 7].into_iter().collect(), 0, Vec::new());
            q.push(&ItemSet::range(20, 23), 0, Vec::new());
            let first = q.pop().expect("an item").item;
            let back = q.take_last(most);
            assert_eq!(back.len(), most.min(7));
            assert_eq!(q.len(), 7 - back.len());
            let rest: ItemSet = std::iter::from_fn(|| q.pop()).map(|i| i.item).chain([first]).collect();
            assert!(rest.is_disjoint(&back));
            assert_eq!(rest.union(&back), [0, 1, 2, 6, 7, 20, 21, 22].into_iter().collect());
        }
    }
}
