//! Items of an array part that no executor has: batches in the order they came, each with its hand-out.
//!
//! Owns the items between the master's hand-out and the lease. Does not know slots or executors.

use smalti_types::{ItemSet, Split};
use std::collections::VecDeque;
use std::sync::Arc;

/// What the items that came together have in common. It is kept as long as one of them has not ended: items of a lease that never arrived
/// are leased again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOut {
    /// The attempt of each of its items.
    pub attempt: u32,
    /// What they read, sorted by item, one for each at most.
    pub splits: Vec<Split>,
}

impl HandOut {
    /// What these items read.
    pub(crate) fn splits_of(&self, items: &ItemSet) -> Vec<Split> {
        let mut found = Vec::new();
        if self.splits.is_empty() {
            return found;
        }
        for range in items.ranges() {
            let first = self.splits.partition_point(|s| s.item < range.first);
            let end = self.splits.partition_point(|s| s.item < range.end);
            found.extend_from_slice(self.splits.get(first..end).unwrap_or_default());
        }
        found
    }
}

/// Items of one hand-out that are left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) items: ItemSet,
    /// Which hand-out of the part, from 1.
    pub(crate) number: u64,
    pub(crate) hand_out: Arc<HandOut>,
}

/// Batches in order. Invariant: no batch is empty, no item is in two, no hand-out has two.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    batches: VecDeque<Batch>,
}

impl Queue {
    /// Appends.
    pub(crate) fn push(&mut self, batch: Batch) {
        if !batch.items.is_empty() {
            self.batches.push_back(batch);
        }
    }

    /// Takes back what was taken from the front.
    pub(crate) fn put_back(&mut self, batch: Batch) {
        if batch.items.is_empty() {
            return;
        }
        match self.batches.iter_mut().find(|b| b.number == batch.number) {
            Some(rest) => rest.items.extend(&batch.items),
            None => self.batches.push_front(batch),
        }
    }

    pub(crate) fn batches(&self) -> impl ExactSizeIterator<Item = &Batch> {
        self.batches.iter()
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

    /// Removes up to `n` items of one hand-out from the front, of those that are `ready` if only some are.
    pub(crate) fn take_first(&mut self, n: u64, ready: Option<&ItemSet>) -> Option<Batch> {
        if n == 0 {
            return None;
        }
        let at = match ready {
            Some(ready) => self.batches.iter().position(|b| !b.items.is_disjoint(ready))?,
            None => 0,
        };
        let batch = self.batches.get_mut(at)?;
        let items = match ready {
            Some(ready) => {
                let items = batch.items.intersection(ready).take_first(n);
                batch.items = batch.items.difference(&items);
                items
            }
            None => batch.items.take_first(n),
        };
        let taken = Batch { items, number: batch.number, hand_out: batch.hand_out.clone() };
        if batch.items.is_empty() {
            self.batches.remove(at);
        }
        Some(taken)
    }

    /// How many items wait, of those that are `ready` if only some are.
    pub(crate) fn len_of(&self, ready: Option<&ItemSet>) -> u64 {
        let Some(ready) = ready else { return self.len() };
        self.batches.iter().map(|b| b.items.intersection(ready).len()).sum()
    }

    /// Removes up to `n` items from the back.
    pub(crate) fn take_last(&mut self, n: u64) -> ItemSet {
        let mut taken = ItemSet::default();
        while taken.len() < n
            && let Some(back) = self.batches.back_mut()
        {
            let items = back.items.take_last(n - taken.len());
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

    fn batch(first: u64, end: u64, number: u64) -> Batch {
        let splits = (first..end).map(|item| Split { item, input: 0, offset: item, length: 1 }).collect();
        let attempt = u32::try_from(number).unwrap();
        Batch { items: ItemSet::range(first, end), number, hand_out: Arc::new(HandOut { attempt, splits }) }
    }

    proptest! {
        #[test]
        fn items_leave_with_their_splits_and_none_is_lost(
            ops in proptest::collection::vec((0_u8..3, 0_u64..20, proptest::option::of(0_u64..150)), 0..30),
        ) {
            let mut queue = Queue::default();
            for i in 0..3 {
                queue.push(batch(i * 50, i * 50 + 30, i));
            }
            let all = queue.items();
            let mut gone = ItemSet::default();
            for (op, n, from) in ops {
                let ready = from.map(|from| ItemSet::range(from, from + 20));
                let had = queue.len_of(ready.as_ref());
                let taken = if op == 2 {
                    queue.take_last(n)
                } else {
                    queue.take_first(n, ready.as_ref()).map_or_else(ItemSet::default, |b| {
                        assert_eq!(b.hand_out.splits_of(&b.items).iter().map(|s| s.item).collect::<ItemSet>(), b.items.clone());
                        assert_eq!(b.number, b.items.first().unwrap() / 50);
                        let items = b.items.clone();
                        assert!(ready.as_ref().is_none_or(|r| r.contains_all(&items)) && items.len() <= had);
                        if op == 1 {
                            queue.put_back(b);
                            return ItemSet::default();
                        }
                        items
                    })
                };
                prop_assert!(taken.len() <= n && taken.is_disjoint(&gone));
                gone.extend(&taken);
                prop_assert_eq!(queue.items().union(&gone), all.clone());
                prop_assert_eq!(queue.len() + gone.len(), all.len());
            }
        }
    }
}
