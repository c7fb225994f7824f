//! An array part that could not be started. It behaves like one whose items all fail at once, so that the agent needs to
//! know nothing more about it: leased items come back failed with the reason, slots are free when they are asked for.
//!
//! Owns the reason and the slots that the agent still counts to the part. No thread runs for it.

use crate::failure::Failure;
use crate::link::Link;
use crate::report::failed_item;
use smalti_executor_protocol::v1;
use smalti_executor_protocol::v1::from_executor::Message;
use smalti_types::items::ItemSet;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Items of one lease that are failed one by one; the others go back. Bounds the report.
const MAX_FAILED: u64 = 10_000;

/// The part.
#[derive(Debug)]
pub(crate) struct BrokenPart {
    run: u64,
    failure: Failure,
    slots: Mutex<BTreeSet<u32>>,
    link: Arc<Link>,
}

impl BrokenPart {
    pub(crate) fn new(run: u64, slots: &[u32], failure: Failure, link: Arc<Link>) -> Self {
        Self { run, failure, slots: Mutex::new(slots.iter().copied().collect()), link }
    }

    /// Fails the items.
    pub(crate) fn lease(&self, mut items: ItemSet, attempt: u32) {
        let failed = items.take_first(MAX_FAILED);
        let failed = failed.iter().map(|item| failed_item(item, attempt, None, self.failure.clone())).collect();
        let returned = items.ranges().iter().map(|r| v1::ItemRange { first: r.first, end: r.end }).collect();
        self.link.say(Message::Report(v1::ArrayReport { run: self.run, failed, returned, ..Default::default() }));
    }

    /// Nothing is ever unstarted here.
    pub(crate) fn unlease(&self) {
        self.link.say(Message::Report(v1::ArrayReport { run: self.run, ..Default::default() }));
    }

    /// Frees these slots, or all when none is named. True: no slot is left.
    pub(crate) fn end(&self, wanted: &[u32]) -> bool {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<u32> = slots.iter().copied().filter(|s| wanted.is_empty() || wanted.contains(s)).collect();
        slots.retain(|s| !gone.contains(s));
        if !gone.is_empty() {
            self.link.say(Message::ArrayEnded(v1::ArrayEnded { run: self.run, slots: gone }));
        }
        slots.is_empty()
    }

    /// What it holds: slots, and never an item.
    pub(crate) fn held(&self) -> v1::HeldPart {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        v1::HeldPart { run: self.run, items: Vec::new(), slots: slots.iter().copied().collect() }
    }
}
