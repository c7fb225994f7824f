//! Ports of agents that other programs of their machines had when a task was to listen on them. For a while tasks get others, as long as
//! there are any.
//!
//! Owns what is remembered of such failures, for all jobs together; not kept over a restart, since it is learnt again with one attempt.
//! Deliberately absent: which ports an agent offers, and which of them tasks have (both are the master's).

use smalti_types::{AgentId, DurationMs, PortSet, Time};
use std::collections::BTreeMap;

/// How long: whoever had it may be gone by then.
const FOR: DurationMs = DurationMs(300_000);
/// Ports remembered per agent: those that failed last.
const MOST_PORTS: usize = 256;
/// Agents with such ports: those where one failed last.
const MOST_AGENTS: usize = 1_024;

/// Ports by agent, and when they last failed.
#[derive(Debug, Default)]
pub(crate) struct Shunned(BTreeMap<AgentId, BTreeMap<u16, Time>>);

impl Shunned {
    /// These could not be listened on there.
    pub(crate) fn note(&mut self, now: Time, agent: &AgentId, ports: &PortSet) {
        if ports.is_empty() {
            return;
        }
        if self.0.len() >= MOST_AGENTS && !self.0.contains_key(agent) {
            let oldest = self.0.iter().min_by_key(|(_, known)| known.values().max()).map(|(id, _)| id.clone());
            oldest.map(|id| self.0.remove(&id));
        }
        let known = self.0.entry(agent.clone()).or_default();
        for port in ports.iter().take(MOST_PORTS) {
            known.insert(port, now);
        }
        while known.len() > MOST_PORTS {
            let oldest = known.iter().min_by_key(|(_, at)| **at).map(|(port, _)| *port);
            oldest.map(|port| known.remove(&port));
        }
    }

    /// Those of this agent that tasks should not get now.
    pub(crate) fn of(&mut self, now: Time, agent: &AgentId) -> PortSet {
        let Some(known) = self.0.get_mut(agent) else { return PortSet::default() };
        known.retain(|_, at| now < at.after(FOR));
        let ports: PortSet = known.keys().copied().collect();
        if ports.is_empty() {
            self.0.remove(agent);
        }
        ports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(n: usize) -> AgentId {
        AgentId::new(format!("a{n}")).unwrap()
    }

    fn ports(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_is_shunned_for_a_while_and_on_that_agent() {
        let mut all = Shunned::default();
        all.note(Time(0), &agent(1), &ports("31000,31002"));
        all.note(Time(5), &agent(1), &ports("31002"));
        assert_eq!((all.of(Time(9), &agent(1)), all.of(Time(9), &agent(2))), (ports("31000,31002"), PortSet::default()));
        let first = Time(0).after(FOR);
        assert_eq!(all.of(first, &agent(1)), ports("31002"));
        assert!(all.of(Time(first.0 + 5), &agent(1)).is_empty() && all.0.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut all = Shunned::default();
        for n in 0..2 * MOST_AGENTS {
            all.note(Time(n as u64), &agent(n), &ports("1-3"));
        }
        assert!(all.0.len() <= MOST_AGENTS && !all.of(Time(0), &agent(2 * MOST_AGENTS - 1)).is_empty());
        for port in 1..2_000_u64 {
            all.note(Time(port), &agent(0), &ports(&port.to_string()));
        }
        let kept = all.of(Time(2_000), &agent(0));
        assert_eq!((kept.len() as usize, kept.contains(&ports("1999"))), (MOST_PORTS, true));
    }
}
