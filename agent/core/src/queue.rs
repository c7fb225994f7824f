//! Items of an array part that no executor has: batches in the order they came, each with its attempt and splits.
//!
//! Owns the items between the master's hand-out and the lease. Does not know slots or executors.

use smalti_types::{ItemBatch, ItemSet, Split};
use std::collections::VecDeque;

/// Items of one hand-out that are left, with the splits of those that have one, sorted by item.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) items: ItemSet,
    pub(crate) attempt: u32,
    pub(crate) splits: VecDeque<Split>,
}

/// Batches in order. Invariant: no batch is empty, no item is in two.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    batches: VecDeque<Batch>,
}

impl Queue {
    /// Appends the items of `batch` that are in `allowed`.
    pub(crate) fn push(&mut self, batch: ItemBatch, allowed: ItemSet) {
        if allowed.is_empty() {
            return;
        }
        let mut splits: Vec<Split> = batch.splits;
        splits.retain(|s| allowed.contains(s.item));
        splits.sort_by_key(|s| s.item);
        splits.dedup_by_key(|s| s.item);
        self.batches.push_back(Batch { items: allowed, attempt: batch.attempt, splits: splits.into() });
    }

    pub(crate) fn len(&self) -> u64 {
        self.batches.iter().map(|b| b.items.len()).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Every item that waits.
    pub(crate) fn items(&self) -> ItemSet {
        self.batches.iter().flat_map(|b| b.items.ranges()).copied().collect()
    }

    /// Removes up to `n` items of one attempt from the front.
    pub(crate) fn take_first(&mut self, n: u64) -> Option<Batch> {
        if n == 0 {
            return None;
        }
        let front = self.batches.front_mut()?;
        let items = front.items.take_first(n);
        let cut = front.splits.partition_point(|s| s.item < items.end());
        let rest = front.splits.split_off(cut);
        let taken = Batch { items, attempt: front.attempt, splits: std::mem::replace(&mut front.splits, rest) };
        if front.items.is_empty() {
            self.batches.pop_front();
        }
        Some(taken)
    }

    /// Removes up to `n` items from the back.
    pub(crate) fn take_last(&mut self, n: u64) -> ItemSet {
        let mut taken = ItemSet::default();
        while taken.len() < n
            && let Some(back) = self.batches.back_mut()
        {
            let items = back.items.take_last(n - taken.len());
            let cut = back.splits.partition_point(|s| s.item < back.items.end());
            back.splits.truncate(cut);
            taken.extend(&items);
            if back.items.is_empty() {
                self.batches.pop_back();
            }
        }
        taken
    }

    /// Removes all.
    pub(crate) fn take_all(&mut self) -> ItemSet {
        let all = self.items();
        self.batches.clear();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(first: u64, end: u64, attempt: u32, with_splits: bool) -> ItemBatch {
        let splits =
            if with_splits { (first..end).map(|item| Split { item, input: 0, offset: item, length: 1 }).collect() } else { Vec::new() };
        ItemBatch { items: ItemSet::range(first, end), attempt, splits }
    }

    proptest! {
        #[test]
        fn items_leave_with_their_splits_and_none_is_lost(ops in proptest::collection::vec((any::<bool>(), 0_u64..20), 0..30)) {
            let mut queue = Queue::default();
            for (i, with_splits) in [(0, true), (1, true), (2, true)] {
                let b = batch(i * 50, i * 50 + 30, u32::try_from(i).unwrap(), with_splits);
                let items = b.items.clone();
                queue.push(b, items);
            }
            let all = queue.items();
            let mut gone = ItemSet::default();
            for (front, n) in ops {
                let taken = if front {
                    queue.take_first(n).map_or_else(ItemSet::default, |b| {
                        assert_eq!(b.splits.iter().map(|s| s.item).collect::<ItemSet>(), b.items.clone());
                        assert_eq!(u64::from(b.attempt), b.items.first().unwrap() / 50);
                        b.items
                    })
                } else {
                    queue.take_last(n)
                };
                prop_assert!(taken.len() <= n && taken.is_disjoint(&gone));
                gone.extend(&taken);
                prop_assert_eq!(queue.items().union(&gone), all.clone());
                prop_assert_eq!(queue.len() + gone.len(), all.len());
            }
        }
    }
}
