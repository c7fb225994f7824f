//! Who gets the next offer: dominant-resource fairness, driven by events.
//!
//! Runs once at the end of each batch and looks only at agents on which something became free (or was refused until now):
//! the work grows with what changed, not with the size of the cluster. Offers are coarse, as in Mesos: all that is free
//! on one agent goes to the framework with the smallest dominant share that has not refused it.
//! Deliberately absent: weights, quota, reservations.

use crate::Effects;
use crate::master::Master;
use crate::slab::FrameworkIx;
use smalti_types::protocol::FrameworkEvent;
use smalti_types::{Offer, Time};
use std::collections::BTreeMap;

impl Master {
    /// Offers what became free since the last call.
    pub(crate) fn allocate(&mut self, now: Time, out: &mut Effects) {
        if self.dirty.is_empty() {
            return;
        }
        self.shares.refresh();
        let dirty = std::mem::take(&mut self.dirty);
        if !self.shares.anybody_eager() {
            return; // Whoever becomes eager makes all free agents dirty again.
        }
        let mut made: BTreeMap<FrameworkIx, Vec<Offer>> = BTreeMap::new();
        for ax in dirty {
            let Some(agent) = self.agents.get(ax).filter(|agent| agent.is_offerable()) else { continue };
            let free = agent.ledger.free();
            let accepts = |fx: &FrameworkIx| self.frameworks.get(*fx).is_some_and(|f| !f.refusals.refuses(ax, free, now));
            let Some(fx) = self.shares.in_order().find(accepts) else { continue };
            if let Some(offer) = self.make_offer(now, fx, ax) {
                made.entry(fx).or_default().push(offer);
            }
        }
        for (fx, offers) in made {
            self.tell(fx, FrameworkEvent::Offers(offers), out);
        }
    }
}
