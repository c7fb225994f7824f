//! Agents where a job's tasks keep failing. After [`STREAK`] failures in a row the job avoids an agent for a while, as long as
//! there is another to turn to; one that finishes something is trusted again.
//!
//! Owns the count. A guest that fails everywhere makes every agent look bad: then none is better, and none is avoided.

use serde::{Deserialize, Serialize};
use smalti_types::{AgentId, DurationMs, Reason, Time};
use std::collections::BTreeMap;

/// Failures in a row after which an agent is avoided.
pub const STREAK: u32 = 3;
/// How long it is avoided after the last of them; doubles with each further one, up to [`LONGEST`].
pub const FIRST: DurationMs = DurationMs(30_000);
/// Longest avoidance: whatever was wrong may have been repaired.
pub const LONGEST: DurationMs = DurationMs(600_000);
/// Agents that are kept: those with the latest failures.
const MOST_AGENTS: usize = 256;

/// What went wrong on one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Attempts that failed there one after another.
    pub streak: u32,
    /// When the last of them did.
    pub last: Time,
    /// Why the last of them did.
    pub reason: Reason,
}

impl Trouble {
    /// Until when it is avoided; `None` while it is not.
    #[must_use]
    pub fn until(&self) -> Option<Time> {
        let beyond = self.streak.checked_sub(STREAK)?;
        Some(self.last.after(DurationMs(FIRST.0.saturating_mul(1 << beyond.min(16)).min(LONGEST.0))))
    }
}

/// Agents with failures, of one job.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Troubles(BTreeMap<AgentId, Trouble>);

impl Troubles {
    /// Whether nothing has failed anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// So many attempts failed on this agent.
    pub(crate) fn failed(&mut self, now: Time, agent: &AgentId, n: u64, reason: Reason) {
        if n == 0 {
            return;
        }
        let streak = self.0.get(agent).map_or(0, |t| t.streak).saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
        self.0.insert(agent.clone(), Trouble { streak, last: now, reason });
        while self.0.len() > MOST_AGENTS {
            let oldest = self.0.iter().min_by_key(|(_, t)| t.last).map(|(id, _)| id.clone());
            oldest.map(|id| self.0.remove(&id));
        }
    }

    /// Something finished there.
    pub(crate) fn finished(&mut self, agent: &AgentId) {
        self.0.remove(agent);
    }

    /// Whether something failed there lately, and often enough to go elsewhere.
    fn is_bad(&self, agent: &AgentId, now: Time) -> bool {
        self.0.get(agent).and_then(Trouble::until).is_some_and(|until| now < until)
    }

    /// The agents to avoid, when `others` has one that is none of them.
    pub(crate) fn avoided<'a>(&self, now: Time, mut others: impl Iterator<Item = &'a AgentId>) -> Vec<AgentId> {
        let bad: Vec<AgentId> = self.0.keys().filter(|id| self.is_bad(id, now)).cloned().collect();
        if bad.is_empty() || !others.any(|id| !self.is_bad(id, now)) { Vec::new() } else { bad }
    }

    /// Agents with a streak, and what went wrong there.
    pub fn iter(&self) -> impl Iterator<Item = (&AgentId, &Trouble)> {
        self.0.iter().filter(|(_, t)| t.streak >= STREAK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentId {
        AgentId::new(name).unwrap()
    }

    #[test]
    fn an_agent_is_avoided_after_a_streak_for_a_while_and_only_if_there_is_another() {
        let (bad, good) = (agent("bad"), agent("good"));
        let at = |ms: u64| Time(ms * 1_000);
        let mut troubles = Troubles::default();
        troubles.failed(at(0), &bad, u64::from(STREAK - 1), Reason::Trap);
        assert_eq!(troubles.avoided(at(1), [&bad, &good].into_iter()), []);
        troubles.failed(at(0), &bad, 1, Reason::Trap);
        assert_eq!(troubles.avoided(at(1), [&bad, &good].into_iter()), vec![bad.clone()]);
        assert_eq!(troubles.avoided(at(1), [&bad].into_iter()), [], "where else?");
        assert_eq!(troubles.avoided(at(FIRST.0), [&bad, &good].into_iter()), [], "for a while");
        troubles.failed(at(FIRST.0), &bad, 1, Reason::Trap);
        assert_eq!(troubles.avoided(at(FIRST.0 * 2), [&bad, &good].into_iter()), vec![bad.clone()], "longer the next time");
        troubles.failed(at(FIRST.0), &good, 9, Reason::Trap);
        assert_eq!(troubles.avoided(at(FIRST.0 * 2), [&bad, &good].into_iter()), [], "it fails everywhere");
        troubles.finished(&good);
        troubles.finished(&bad);
        assert!(troubles.is_empty());
    }
}
