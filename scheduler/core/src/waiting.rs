//! Single tasks that wait for an offer: by priority and age, and which of them need which bundle.
//!
//! When the agents of a batch do not hold what the oldest task runs and hold what younger ones run, those go first: an agent whose cache is
//! smaller than all bundles together then fetches each a few times and not for every task. Nobody is passed over for ever: after
//! [`MOST_AHEAD`] tasks that went ahead the oldest has its turn. Owns these lists, and whom it was said of lately that its agent fetches a
//! bundle: offers tell of that half a second later.

use crate::id::JobId;
use crate::placing::OpenOffer;
use smalti_types::{AgentId, DurationMs, HoldingKey, Offer, Time};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

/// So many tasks go ahead of the oldest before it has its turn.
const MOST_AHEAD: u32 = 256;
/// Names of bundles that are looked for in one batch.
const MOST_LOOKS: usize = 1_024;
/// Tasks of one batch that go ahead.
const MOST_OF_BATCH: usize = 256;
/// Bundles that an agent was made to fetch are remembered for so long …
const FRESH: DurationMs = DurationMs(2_000);
/// … and so many of them.
const MOST_FRESH: usize = 256;

/// A priority and an age.
type Rank = (Reverse<i32>, JobId);

/// The tasks of one role.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    by_age: BTreeMap<Rank, HoldingKey>,
    by_bundle: BTreeSet<(HoldingKey, Rank)>,
    /// How many went ahead of the oldest since it had a turn.
    ahead: u32,
    fresh: VecDeque<(Time, AgentId, HoldingKey)>,
}

impl Waiting {
    /// A task waits, and runs this bundle. Says whether that is new.
    pub(crate) fn insert(&mut self, rank: Rank, bundle: HoldingKey) -> bool {
        let before = self.by_age.insert(rank, bundle);
        if let Some(other) = before.filter(|b| *b != bundle) {
            self.by_bundle.remove(&(other, rank));
        }
        self.by_bundle.insert((bundle, rank));
        before.is_none()
    }

    pub(crate) fn remove(&mut self, rank: &Rank) {
        if let Some(bundle) = self.by_age.remove(rank) {
            self.by_bundle.remove(&(bundle, *rank));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_age.is_empty()
    }

    /// All, the highest priority and the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rank> {
        self.by_age.keys()
    }

    /// The highest priority.
    pub(crate) fn first(&self) -> Option<&Rank> {
        self.by_age.first_key_value().map(|(rank, _)| rank)
    }

    /// The first from this rank on.
    pub(crate) fn first_from(&self, rank: Rank) -> Option<&Rank> {
        self.by_age.range(rank..).next().map(|(rank, _)| rank)
    }

    /// Those of one priority by age.
    pub(crate) fn level(&self, level: RangeInclusive<Rank>) -> impl Iterator<Item = JobId> {
        self.by_age.range(level).map(|((_, id), _)| *id)
    }

    /// Those of one priority that are to go ahead of the oldest on these offers, by age; mostly none.
    pub(crate) fn ahead<K>(&self, level: RangeInclusive<Rank>, offers: &[OpenOffer<K>]) -> Vec<JobId> {
        let (first, last) = (*level.start(), *level.end());
        let held = |name: &HoldingKey| offers.iter().any(|o| o.offer.holdings.binary_search(name).is_ok());
        let oldest = self.by_age.range(level).next().map(|(_, bundle)| bundle);
        if self.ahead >= MOST_AHEAD || oldest.is_none_or(held) {
            return Vec::new();
        }
        let names: BTreeSet<HoldingKey> = offers.iter().flat_map(|o| &o.offer.holdings).take(MOST_LOOKS).copied().collect();
        let theirs = names.into_iter().flat_map(|name| self.by_bundle.range((name, first)..=(name, last)).take(MOST_OF_BATCH));
        let mut all: Vec<JobId> = theirs.map(|(_, (_, id))| *id).collect();
        all.sort_unstable();
        all.truncate(MOST_OF_BATCH);
        all
    }

    /// So many went ahead; none: the oldest had their turn.
    pub(crate) fn went_ahead(&mut self, tasks: usize) {
        let tasks = u32::try_from(tasks).unwrap_or(u32::MAX);
        self.ahead = if tasks == 0 { 0 } else { self.ahead.saturating_add(tasks) };
    }

    /// An agent fetches a bundle for a task that was launched now.
    pub(crate) fn fetches(&mut self, now: Time, agent: &AgentId, bundle: HoldingKey) {
        // Where all run the same, nobody goes ahead.
        let differ = self.by_bundle.first().zip(self.by_bundle.last()).is_some_and(|((first, _), (last, _))| first != last);
        if !differ || self.fresh.back().is_some_and(|(_, last, name)| last == agent && *name == bundle) {
            return;
        }
        if self.fresh.len() >= MOST_FRESH {
            self.fresh.pop_front();
        }
        self.fresh.push_back((now, agent.clone(), bundle));
    }

    /// Adds to an offer what its agent was made to fetch lately.
    pub(crate) fn add_fresh(&mut self, now: Time, offer: &mut Offer) {
        while self.fresh.pop_front_if(|(at, ..)| at.after(FRESH) <= now).is_some() {}
        offer.holdings.extend(self.fresh.iter().filter(|(_, agent, _)| *agent == offer.agent).map(|(_, _, bundle)| *bundle));
    }

    /// What must hold after every event.
    pub(crate) fn check(&self) -> Result<(), String> {
        let listed = self.by_age.iter().all(|(rank, bundle)| self.by_bundle.contains(&(*bundle, *rank)));
        if listed && self.by_age.len() == self.by_bundle.len() {
            Ok(())
        } else {
            Err(format!("{} tasks wait, {} by bundle", self.by_age.len(), self.by_bundle.len()))
        }
    }
}
