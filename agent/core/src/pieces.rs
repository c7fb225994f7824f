//! Items of an array part whose splits are fetched by themselves: they are leased when their bytes are there, and a few are fetched ahead.
//!
//! Owns what was asked of the shell and is there; nothing of it outlives the agent, since whatever was fetched is found again quickly. Does
//! not know files: that a fetch has failed is for the item to find.

use crate::queue::Queue;
use smalti_types::{Input, ItemSet, Split};

/// Most items whose splits are fetched ahead, however short they are.
const MOST_AHEAD: u64 = 4_096;

/// Of one part.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    /// Which of its inputs come in pieces; empty when none does.
    inputs: Vec<bool>,
    /// Items that wait for their bytes.
    asked: ItemSet,
    /// Items that can be leased, or are.
    there: ItemSet,
}

impl Pieces {
    pub(crate) fn new(inputs: &[Input]) -> Self {
        let mut flags: Vec<bool> = inputs.iter().map(Input::is_in_pieces).collect();
        if !flags.contains(&true) {
            flags.clear();
        }
        Self { inputs: flags, ..Self::default() }
    }

    /// The items that can be leased; `None`: all.
    pub(crate) fn ready(&self) -> Option<&ItemSet> {
        (!self.inputs.is_empty()).then_some(&self.there)
    }

    /// Splits to fetch now, so that about `ahead` of the items that wait can be leased.
    pub(crate) fn take_wanted(&mut self, queue: &Queue, ahead: u64) -> Vec<Split> {
        let mut wanted = Vec::new();
        if self.inputs.is_empty() || queue.is_empty() {
            return wanted;
        }
        let known = self.asked.union(&self.there);
        let mut missing = ahead.min(MOST_AHEAD).saturating_sub(queue.items().intersection(&known).len());
        for batch in queue.batches() {
            let items = batch.items.difference(&known).take_first(missing);
            missing -= items.len();
            let splits = batch.hand_out.splits_of(&items);
            let in_pieces = splits.into_iter().filter(|s| self.inputs.get(s.input as usize).is_some_and(|is| *is));
            let before = wanted.len();
            wanted.extend(in_pieces);
            let asked: ItemSet = wanted.iter().skip(before).map(|s| s.item).collect();
            // The others have nothing to wait for.
            self.there.extend(&items.difference(&asked));
            self.asked.extend(&asked);
            if missing == 0 {
                break;
            }
        }
        wanted
    }

    /// The bytes of these are there, or word of why they are not.
    pub(crate) fn arrived(&mut self, items: &ItemSet) {
        let arrived = self.asked.intersection(items);
        self.asked = self.asked.difference(&arrived);
        self.there.extend(&arrived);
    }

    /// Items that are not `here` any more: nobody needs their bytes.
    pub(crate) fn take_gone(&mut self, here: &ItemSet) -> ItemSet {
        let gone = self.asked.union(&self.there).difference(here);
        self.asked = self.asked.difference(&gone);
        self.there = self.there.difference(&gone);
        gone
    }

    /// All that was fetched is gone.
    pub(crate) fn reset(&mut self) {
        (self.asked, self.there) = Default::default();
    }

    /// Nothing is asked for twice, and what is asked for waits.
    pub(crate) fn check_invariants(&self, queued: &ItemSet) -> Result<(), String> {
        if !self.asked.is_disjoint(&self.there) {
            return Err("an item's bytes are there and asked for".into());
        }
        if !queued.contains_all(&self.asked) {
            return Err("an item's bytes are asked for, and it does not wait".into());
        }
        Ok(())
    }
}
