//! One array part as the client sees it: items that were handed to it and have not come back, as an outcome or as themselves.
//!
//! An assignment can be lost with a connection, on either side of the master, and nobody would notice: the part waits for
//! items, the scheduler for outcomes. So what the part does not show to have is handed to it again; to an agent, items
//! that it already has are no news. The same for closing a part and for asking items back.

use smalti_types::protocol::Call;
use smalti_types::{ArrayDelta, DurationMs, ItemBatch, ItemSet, Time};
use std::collections::{BTreeMap, VecDeque};

use crate::attempts::Key;

/// Wait before something is said again for the first time. Longer than any healthy round trip.
const FIRST_WAIT: DurationMs = DurationMs(5_000);
/// The wait doubles up to this.
const LAST_WAIT: DurationMs = DurationMs(30_000);
/// After a new subscription the updates under way come first; then what is missing is said again.
const RESUBSCRIBE_WAIT: DurationMs = DurationMs(1_000);

/// What was handed to a part.
#[derive(Debug)]
pub(crate) struct Part {
    /// Items without outcome, in the order they were handed out, with whether the part has shown that it has them.
    /// Invariant: no batch is empty.
    batches: VecDeque<(ItemBatch, bool)>,
    /// Whether more may follow, as said last.
    open: bool,
    /// Whether closing was said in a call of its own: then it can be lost on its own.
    closed_late: bool,
    /// Items whose outcome was delivered in this life: when they are handed out all the same, that was decided before it was taken.
    finished: ItemSet,
    /// The same for items that failed, by attempt: a later one may be handed out.
    failed: BTreeMap<u32, ItemSet>,
    /// Items that came back, by the number of the update that says so and that the handler has not taken yet.
    returned: BTreeMap<u64, ItemSet>,
    /// Launched in an earlier life: an update may be older than this life, so what it confirms the next may take back.
    adopted: bool,
    /// When to say things again.
    again: Time,
    wait: DurationMs,
}

impl Part {
    /// Launched with these items.
    pub(crate) fn new(batch: ItemBatch, open: bool, now: Time) -> Self {
        let mut part = Self {
            batches: VecDeque::new(),
            open,
            closed_late: false,
            finished: ItemSet::default(),
            failed: BTreeMap::new(),
            returned: BTreeMap::new(),
            adopted: false,
            again: now.after(FIRST_WAIT),
            wait: FIRST_WAIT,
        };
        // These come and go with the launch itself.
        part.push(batch, true);
        part
    }

    /// Launched in an earlier life of this process: what it has is not known.
    pub(crate) fn adopted(now: Time) -> Self {
        Self { adopted: true, ..Self::new(ItemBatch::default(), true, now) }
    }

    /// Closed in an earlier life of this process: that is said until it has ended.
    pub(crate) fn closed() -> Self {
        Self { open: false, closed_late: true, ..Self::adopted(Time(0)) }
    }

    /// Whether closing it is said again by a later life of this process.
    pub(crate) const fn is_closed_late(&self) -> bool {
        self.closed_late
    }

    fn push(&mut self, batch: ItemBatch, confirmed: bool) {
        if !batch.items.is_empty() {
            self.batches.push_back((batch, confirmed));
        }
    }

    /// Takes out of a batch what has had its outcome already, or came back without the handler knowing it yet.
    pub(crate) fn without_ended(&self, batch: &mut ItemBatch) {
        let mut ended = self.finished.clone();
        self.failed.range(batch.attempt..).for_each(|(_, items)| ended.extend(items));
        self.returned.values().for_each(|items| ended.extend(items));
        if !ended.is_disjoint(&batch.items) {
            batch.items = batch.items.difference(&ended);
            batch.splits.retain(|s| !ended.contains(s.item));
        }
    }

    /// More items are handed to it, or it is closed.
    pub(crate) fn assign(&mut self, batch: ItemBatch, open: bool, now: Time) {
        self.closed_late |= self.open && !open;
        self.open &= open;
        self.push(batch, false);
        self.wait = FIRST_WAIT;
        self.again = now.after(FIRST_WAIT);
    }

    /// An update of the part was delivered.
    pub(crate) fn account(&mut self, seq: u64, delta: &ArrayDelta, now: Time) {
        if seq > 0 && !delta.returned.is_empty() {
            self.returned.insert(seq, delta.returned.clone());
        }
        self.finished.extend(&delta.finished);
        for f in &delta.failed {
            self.failed.entry(f.attempt).or_default().insert(f.item);
        }
        let mut gone = delta.finished.union(&delta.returned);
        if !delta.failed.is_empty() {
            gone.extend(&delta.failed.iter().map(|f| f.item).collect::<ItemSet>());
        }
        if !gone.is_empty() {
            for (batch, _) in &mut self.batches {
                batch.items = batch.items.difference(&gone);
                batch.splits.retain(|s| !gone.contains(s.item));
            }
            self.batches.retain(|(b, _)| !b.items.is_empty());
        }
        let has_all = delta.outstanding >= self.outstanding();
        if has_all || self.adopted {
            self.batches.iter_mut().for_each(|(_, confirmed)| *confirmed = has_all);
        }
        self.again = self.again.max(now.after(RESUBSCRIBE_WAIT));
    }

    /// The handler has taken an update.
    pub(crate) fn taken(&mut self, seq: u64) {
        self.returned.remove(&seq);
    }

    /// A new subscription: say again soon what may have been lost.
    pub(crate) fn resubscribed(&mut self, now: Time) {
        self.wait = FIRST_WAIT;
        self.again = now.after(RESUBSCRIBE_WAIT);
    }

    /// Items without outcome.
    pub(crate) fn outstanding(&self) -> u64 {
        self.batches.iter().map(|(b, _)| b.items.len()).sum()
    }

    /// Calls to make again now.
    pub(crate) fn due(&mut self, key: &Key, now: Time) -> Vec<Call> {
        let mut calls = Vec::new();
        if now < self.again {
            return calls;
        }
        let (task, attempt) = key;
        let assign = |batch: ItemBatch, open| Call::AssignItems { task: task.clone(), attempt: *attempt, batch, open };
        // While any of them is missing the part stays open, or those said after it would come too late.
        calls.extend(self.batches.iter().filter(|(_, confirmed)| !confirmed).map(|(b, _)| assign(b.clone(), true)));
        if self.closed_late {
            calls.push(assign(ItemBatch::default(), false));
        }
        if !calls.is_empty() {
            self.wait = DurationMs((self.wait.0 * 2).min(LAST_WAIT.0));
            self.again = now.after(self.wait);
        }
        calls
    }

    /// What must hold of any part.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.batches.iter().any(|(b, _)| b.items.is_empty()) {
            return Err("an empty batch is kept".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_types::TaskId;

    fn batch(first: u64, end: u64) -> ItemBatch {
        ItemBatch { items: ItemSet::range(first, end), ..ItemBatch::default() }
    }

    fn delta(finished: ItemSet, outstanding: u64) -> ArrayDelta {
        ArrayDelta { finished, outstanding, slots: 1, ..ArrayDelta::default() }
    }

    #[test]
    fn items_that_the_part_does_not_show_are_handed_to_it_again_until_it_does() {
        let key = (TaskId::new("p").unwrap(), 0);
        let at = |s: u64| Time(s * 1_000_000);
        let mut part = Part::new(batch(0, 4), true, at(0));
        assert!(part.due(&key, at(60)).is_empty(), "the launch itself is reconciled, not its items");
        part.assign(batch(4, 8), true, at(60));
        assert!(part.due(&key, at(64)).is_empty());
        part.account(1, &delta(ItemSet::range(0, 2), 2), at(64));
        let again = part.due(&key, at(65));
        assert!(
            matches!(again.as_slice(), [Call::AssignItems { batch: b, open: true, .. }] if b.items == ItemSet::range(4, 8)),
            "{again:?}"
        );
        assert!(part.due(&key, at(74)).is_empty());
        part.account(1, &delta(ItemSet::range(2, 4), 4), at(74));
        assert!(part.due(&key, at(200)).is_empty());
    }

    #[test]
    fn of_an_adopted_part_an_old_update_confirms_only_until_the_next() {
        let key = (TaskId::new("p").unwrap(), 0);
        let at = |s: u64| Time(s * 1_000_000);
        let mut part = Part::adopted(at(0));
        part.assign(batch(0, 4), true, at(0));
        part.account(1, &delta(ItemSet::default(), 9), at(1));
        assert!(part.due(&key, at(10)).is_empty());
        part.account(1, &delta(ItemSet::default(), 0), at(11));
        assert_eq!(part.due(&key, at(12)).len(), 1);
    }

    #[test]
    fn closing_is_said_last_and_again() {
        let key = (TaskId::new("p").unwrap(), 0);
        let mut part = Part::new(ItemBatch::default(), true, Time(0));
        part.assign(batch(0, 2), true, Time(0));
        part.assign(batch(2, 4), false, Time(0));
        let opens: Vec<_> = part.due(&key, Time(6_000_000)).iter().map(|c| matches!(c, Call::AssignItems { open: true, .. })).collect();
        assert_eq!(opens, [true, true, false]);
    }
}
