//! What a framework does not want to be offered again for a while. Owns the refusals of one framework, by agent.

use crate::slab::AgentIx;
use smalti_types::{Resources, Time};
use std::collections::BTreeMap;

/// One refusal: until a time, or until the agent has more than what was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) until: Time,
    pub(crate) what: Resources,
}

/// The refusals of one framework.
#[derive(Debug, Default)]
pub(crate) struct Refusals(BTreeMap<AgentIx, Refusal>);

impl Refusals {
    /// Whether `free` of this agent need not be offered now.
    pub(crate) fn refuses(&self, agent: AgentIx, free: &Resources, now: Time) -> bool {
        self.0.get(&agent).is_some_and(|r| now < r.until && r.what.contains(free))
    }

    /// A later refusal of the same agent replaces the earlier one. Gives the end of the one that was replaced.
    pub(crate) fn add(&mut self, agent: AgentIx, refusal: Refusal) -> Option<Time> {
        self.0.insert(agent, refusal).map(|old| old.until)
    }

    pub(crate) fn remove(&mut self, agent: AgentIx) -> Option<Time> {
        self.0.remove(&agent).map(|old| old.until)
    }

    pub(crate) fn get(&self, agent: AgentIx) -> Option<&Refusal> {
        self.0.get(&agent)
    }

    /// Forgets all of them, and gives what was forgotten.
    pub(crate) fn clear(&mut self) -> impl Iterator<Item = (AgentIx, Time)> {
        std::mem::take(&mut self.0).into_iter().map(|(agent, r)| (agent, r.until))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (AgentIx, &Refusal)> {
        self.0.iter().map(|(agent, r)| (*agent, r))
    }
}
