//! What the agents of a role hold, as their last offers said.
//!
//! Owns this memory and its bounds. It is hearsay: what is not there any more is fetched. Not kept over a restart: offers say it anew.

use crate::placing::Request;
use crate::wanted::Wanted;
use smalti_types::{AgentId, Attributes, HoldingKey, MAX_HOLDINGS, Offer, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Most names that are remembered, of all agents of a role together; about 24 MB. Beyond that, who was offered longest ago is forgotten.
const MOST_NAMES: usize = 1 << 20;

/// An agent that holds something.
#[derive(Debug)]
struct Holder {
    id: AgentId,
    attributes: Attributes,
    /// Sorted.
    names: Vec<HoldingKey>,
    /// When it was last offered.
    at: Time,
}

/// Agents and what they hold.
#[derive(Debug, Default)]
pub(crate) struct Known {
    numbers: BTreeMap<AgentId, u64>,
    agents: BTreeMap<u64, Holder>,
    holders: BTreeSet<(HoldingKey, u64)>,
    last: u64,
}

/// Where the inputs of a task lie.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Lying {
    /// How many bytes agents of the present offers hold, by the place of the offer.
    pub(crate) here: BTreeMap<usize, u64>,
    /// Who of all known agents that may have the task holds most, and how many bytes.
    pub(crate) best: Option<(AgentId, u64)>,
}

impl Known {
    pub(crate) fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    /// An offer says what its agent holds, in order.
    pub(crate) fn note(&mut self, now: Time, offer: &Offer) {
        if offer.holdings.is_empty() {
            if !self.is_empty() {
                self.forget(&offer.agent);
            }
            return;
        }
        let number = *self.numbers.entry(offer.agent.clone()).or_insert_with(|| {
            self.last += 1;
            self.last
        });
        let fresh = || Holder { id: offer.agent.clone(), attributes: offer.attributes.clone(), names: Vec::new(), at: now };
        let holder = self.agents.entry(number).or_insert_with(fresh);
        holder.at = now;
        if holder.attributes != offer.attributes {
            holder.attributes.clone_from(&offer.attributes);
        }
        if holder.names == offer.holdings {
            return;
        }
        let before = std::mem::replace(&mut holder.names, offer.holdings.clone());
        for name in before.iter().filter(|n| offer.holdings.binary_search(n).is_err()) {
            self.holders.remove(&(*name, number));
        }
        self.holders.extend(offer.holdings.iter().filter(|n| before.binary_search(n).is_err()).map(|n| (*n, number)));
        while self.holders.len() > MOST_NAMES {
            let Some(oldest) = self.agents.values().min_by_key(|a| a.at).map(|a| a.id.clone()) else { return };
            self.forget(&oldest);
        }
    }

    /// It is gone, or holds nothing. Returns whether it was known.
    pub(crate) fn forget(&mut self, agent: &AgentId) -> bool {
        let Some(number) = self.numbers.remove(agent) else { return false };
        for name in self.agents.remove(&number).iter().flat_map(|a| &a.names) {
            self.holders.remove(&(*name, number));
        }
        true
    }

    /// Those that were not offered since then are forgotten.
    pub(crate) fn forget_before(&mut self, time: Time) {
        let old: Vec<AgentId> = self.agents.values().filter(|a| a.at < time).map(|a| a.id.clone()).collect();
        for id in old {
            self.forget(&id);
        }
    }

    /// Whether this agent was not offered since then, and is known nevertheless.
    pub(crate) fn is_silent_since(&self, agent: &AgentId, time: Time) -> bool {
        self.numbers.get(agent).and_then(|n| self.agents.get(n)).is_some_and(|a| a.at <= time)
    }

    /// Places of offers by the number of their agent, as far as it holds something.
    pub(crate) fn places<'a>(&self, offers: impl Iterator<Item = &'a Offer>) -> BTreeMap<u64, usize> {
        if self.is_empty() {
            return BTreeMap::new();
        }
        offers.enumerate().filter_map(|(place, offer)| Some((*self.numbers.get(&offer.agent)?, place))).collect()
    }

    /// Where the inputs of a task lie.
    pub(crate) fn lying(&self, wanted: &Wanted, request: &Request<'_>, places: &BTreeMap<u64, usize>) -> Lying {
        let mut lying = Lying::default();
        if self.is_empty() || wanted.inputs.is_empty() {
            return lying;
        }
        let mut sums: BTreeMap<u64, u64> = BTreeMap::new();
        for (name, length) in &wanted.inputs {
            for (_, number) in self.holders.range((*name, 0)..=(*name, u64::MAX)) {
                let sum = sums.entry(*number).or_default();
                *sum = sum.saturating_add(*length);
            }
        }
        for (number, bytes) in sums {
            if let Some(place) = places.get(&number) {
                lying.here.insert(*place, bytes);
            }
            let Some(holder) = self.agents.get(&number) else { continue };
            if lying.best.as_ref().is_none_or(|(_, most)| bytes > *most) && request.may_go_to(&holder.id, &holder.attributes) {
                lying.best = Some((holder.id.clone(), bytes));
            }
        }
        lying
    }

    /// What must hold after every event.
    pub(crate) fn check(&self) -> Result<(), String> {
        let names: usize = self.agents.values().map(|a| a.names.len()).sum();
        if names != self.holders.len() || self.agents.len() != self.numbers.len() {
            return Err(format!("{names} names of {} agents, {} by name", self.agents.len(), self.holders.len()));
        }
        if names > MOST_NAMES || self.agents.values().any(|a| a.names.is_empty() || a.names.len() > MAX_HOLDINGS) {
            return Err(format!("{names} names are too many, or an agent has none or too many"));
        }
        Ok(())
    }
}

/// Makes an offer's names what is expected everywhere: sorted, each once, no more than are told.
pub(crate) fn tidy(offer: &mut Offer) {
    if !offer.holdings.is_empty() {
        offer.holdings.truncate(MAX_HOLDINGS);
        offer.holdings.sort_unstable();
        offer.holdings.dedup();
    }
}
