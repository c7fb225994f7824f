//! Which offers of a batch are near to what is wanted: whose agents hold most of it.
//!
//! Owns the order in which offers are tried. Costs next to nothing when no agent holds anything, and once per bundle, or set of inputs,
//! otherwise.

use crate::known::{Known, Lying};
use crate::placing::{OpenOffer, Request};
use crate::wanted::{BUNDLE_WEIGHT, Wanted};
use smalti_types::HoldingKey;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Bundles whose order of offers is remembered within a batch.
const MOST_BASES: usize = 64;

/// All offers of a batch in order: first those whose agents hold the bundle.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    /// `None`: as they came.
    order: Option<Rc<[usize]>>,
    all: usize,
}

impl Base {
    pub(crate) fn len(&self) -> usize {
        self.all
    }

    /// The offer at this place of the order.
    pub(crate) fn at(&self, place: usize) -> Option<usize> {
        match &self.order {
            Some(order) => order.get(place).copied(),
            None => (place < self.all).then_some(place),
        }
    }
}

/// One batch of offers, and where content lies.
pub(crate) struct Near<'a> {
    known: &'a Known,
    /// Of offers, by the number of their agent.
    places: BTreeMap<u64, usize>,
    /// Some agent of the batch holds something.
    any: bool,
    all: usize,
    bases: BTreeMap<HoldingKey, Base>,
}

fn holds<K>(offer: &OpenOffer<K>, name: HoldingKey) -> bool {
    offer.offer.holdings.binary_search(&name).is_ok()
}

impl<'a> Near<'a> {
    pub(crate) fn new<K>(known: &'a Known, offers: &[OpenOffer<K>]) -> Self {
        let any = offers.iter().any(|o| !o.offer.holdings.is_empty());
        let places = if any { known.places(offers.iter().map(|o| &o.offer)) } else { BTreeMap::new() };
        Self { known, places, any, all: offers.len(), bases: BTreeMap::new() }
    }

    /// Nobody is known to hold anything: all offers are alike for everybody.
    pub(crate) fn is_blank(&self) -> bool {
        !self.any && self.known.is_empty()
    }

    /// All offers for who wants this bundle.
    pub(crate) fn base<K>(&mut self, bundle: HoldingKey, offers: &[OpenOffer<K>]) -> Base {
        if !self.any {
            return Base { order: None, all: self.all };
        }
        if let Some(base) = self.bases.get(&bundle) {
            return base.clone();
        }
        let (mut order, others): (Vec<usize>, Vec<usize>) =
            (0..offers.len()).partition(|i| offers.get(*i).is_some_and(|o| holds(o, bundle)));
        order.extend(others);
        let base = Base { order: Some(order.into()), all: self.all };
        if self.bases.len() >= MOST_BASES {
            self.bases.clear();
        }
        self.bases.insert(bundle, base.clone());
        base
    }

    pub(crate) fn lying(&self, wanted: &Wanted, request: &Request<'_>) -> Lying {
        self.known.lying(wanted, request, &self.places)
    }

    /// What an agent that holds so many bytes of the inputs, and perhaps the bundle, counts.
    pub(crate) fn weight<K>(&self, bytes: u64, bundle: HoldingKey, offer: Option<&OpenOffer<K>>) -> u64 {
        let bundle = if self.any && offer.is_some_and(|o| holds(o, bundle)) { BUNDLE_WEIGHT } else { 0 };
        bytes.saturating_add(bundle)
    }

    /// Offers whose agents hold inputs, with how many bytes, the best last. One with less than the bundle counts comes after those that
    /// have it, so it is none of them if there are such.
    pub(crate) fn best_last<K>(&self, lying: &Lying, base: &Base, bundle: HoldingKey, offers: &[OpenOffer<K>]) -> Vec<(usize, u64)> {
        if lying.here.is_empty() {
            return Vec::new();
        }
        let bundled = base.at(0).and_then(|i| offers.get(i)).is_some_and(|o| holds(o, bundle));
        let weigh = |(i, bytes): (&usize, &u64)| (self.weight(*bytes, bundle, offers.get(*i)), *i, *bytes);
        let mut here: Vec<_> = lying.here.iter().map(weigh).filter(|(weight, ..)| !bundled || *weight >= BUNDLE_WEIGHT).collect();
        here.sort_by_key(|(weight, i, _)| (*weight, std::cmp::Reverse(*i)));
        here.into_iter().map(|(_, i, bytes)| (i, bytes)).collect()
    }
}
