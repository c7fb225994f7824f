//! The books of one agent: used + offered + free = total, per resource, always.
//!
//! Owns that equation. Every movement is between two of the three columns, checked in fixed point. Whoever moves
//! resources has them written down elsewhere (a task, an offer), so a movement that fails is a defect of this crate.

use smalti_types::{Resources, ResourcesError, Sabotage};

/// The columns. `total` changes only when the agent registers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ledger {
    total: Resources,
    used: Resources,
    offered: Resources,
    free: Resources,
}

const BALANCED: &str = "tasks and offers hold what the books say";

impl Ledger {
    /// Books of an agent whose tasks hold `used`.
    pub(crate) fn open(total: Resources, used: Resources) -> Result<Self, ResourcesError> {
        let free = total.checked_sub(&used)?;
        Ok(Self { total, used, offered: Resources::default(), free })
    }

    pub(crate) fn total(&self) -> &Resources {
        &self.total
    }

    pub(crate) fn used(&self) -> &Resources {
        &self.used
    }

    pub(crate) fn offered(&self) -> &Resources {
        &self.offered
    }

    pub(crate) fn free(&self) -> &Resources {
        &self.free
    }

    /// Moves all that is free into an offer.
    pub(crate) fn offer_all(&mut self) -> Resources {
        let offer = if Sabotage::MasterOffersTwice.is_on() { self.free.clone() } else { std::mem::take(&mut self.free) };
        self.offered = self.offered.checked_add(&offer).expect(BALANCED);
        offer
    }

    /// An offer is void: what it held is free again.
    pub(crate) fn take_back(&mut self, offer: &Resources) {
        self.offered = self.offered.checked_sub(offer).expect(BALANCED);
        self.free = self.free.checked_add(offer).expect(BALANCED);
    }

    /// A task takes part of what is free. The caller has checked that it fits.
    pub(crate) fn take(&mut self, part: &Resources) {
        self.free = self.free.checked_sub(part).expect(BALANCED);
        self.used = self.used.checked_add(part).expect(BALANCED);
    }

    /// A task gives back what it took.
    pub(crate) fn give_back(&mut self, part: &Resources) {
        self.used = self.used.checked_sub(part).expect(BALANCED);
        self.free = self.free.checked_add(part).expect(BALANCED);
    }

    /// Whether the equation holds.
    pub(crate) fn is_balanced(&self) -> bool {
        self.used.checked_add(&self.offered).and_then(|s| s.checked_add(&self.free)).is_ok_and(|sum| sum == self.total)
    }
}
