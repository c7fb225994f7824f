//! The items of one round of an array: which are ready, waiting for a retry, handed out, finished, failed, cancelled.
//! Each item is in exactly one of these at any time (see [`crate::invariants`]).
//!
//! Owns the accounting. Who gets how many items and when is decided in [`crate::feed`].

use crate::again::PutBack;
use crate::part::Part;
use crate::retry::{self, Blame, Tries, Verdict};
use crate::trouble::Troubles;
use serde::{Deserialize, Serialize};
use smalti_types::{AgentId, ItemSet, Reason, StatusUpdate, TaskState, Time, Usage};
use std::collections::BTreeMap;

/// Failures kept with their words: those of the lowest items. The set of failed items is complete.
pub const MAX_FAILURES_KEPT: usize = 1_000;
/// Result values kept per round, in bytes. Later ones are dropped: large values belong on stdout.
pub const MAX_RESULT_BYTES: usize = 1 << 20;
/// Ranges in one batch: a batch must fit a message, also when returned items lie scattered.
pub const MAX_BATCH_RANGES: usize = 8_192;

/// The items of one round.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pool {
    pub(crate) total: u64,
    /// Items read splits, which are listed one by one.
    pub(crate) has_splits: bool,
    /// Not handed out, by the number of their next attempt.
    pub(crate) ready: BTreeMap<u32, ItemSet>,
    /// Waiting until a time to be tried again.
    pub(crate) delayed: BTreeMap<Time, ItemSet>,
    /// Items that have failed before, by how often.
    pub(crate) tried: Vec<(Tries, ItemSet)>,
    pub(crate) finished: ItemSet,
    pub(crate) failed: ItemSet,
    /// Given up without an outcome: killed, or another item failed.
    pub(crate) cancelled: ItemSet,
    pub(crate) failures: BTreeMap<u64, Failure>,
    pub(crate) results: BTreeMap<u64, Vec<u8>>,
    pub(crate) parts: BTreeMap<u32, Part>,
    pub(crate) next_part: u32,
    /// Used by parts that are no longer kept.
    pub(crate) past_usage: Usage,
    /// What failed last and was put back.
    #[serde(default)]
    pub(crate) put_back_last: Option<PutBack>,
    /// How often one part after the other lost its items before it began. See [`crate::feed::SLOW_START_US`].
    #[serde(default)]
    pub(crate) slow_starts: u32,
}

/// How an item or task ended that did not finish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Failed, Killed, Error, …
    pub state: TaskState,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// The guest's exit code, when it had one.
    pub exit_code: Option<i32>,
    /// Which attempt.
    pub attempt: u32,
    /// Where.
    pub agent: Option<AgentId>,
}

/// How failures are treated now.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Of the policy.
    pub retries: u32,
    /// The job is being ended: nothing is tried again.
    pub ending: bool,
}

/// Whether this update ends `part` because of what all its items have in common (bundle, inputs, description), or before it
/// finished any item.
fn never_began(part: &Part, update: &StatusUpdate) -> bool {
    let ended = update.state.is_terminal() && update.state != TaskState::Finished;
    ended
        && match retry::blame(update.state, update.reason) {
            Blame::Guest | Blame::Description => true,
            Blame::Infrastructure => part.finished.is_empty(),
            Blame::Request => false,
        }
}

/// What an update says of the agent that sent it.
fn note(now: Time, part: &Part, update: &StatusUpdate, troubles: &mut Troubles) {
    let to_blame = |state, reason| matches!(retry::blame(state, reason), Blame::Guest | Blame::Infrastructure);
    let mut ended =
        update.array.iter().flat_map(|d| &d.failed).filter(|f| part.outstanding.contains(f.item) && to_blame(f.state, f.reason));
    let failed = ended.clone().count() as u64;
    if update.array.as_ref().is_some_and(|d| !d.finished.is_disjoint(&part.outstanding)) {
        troubles.finished(&part.agent);
    } else if let Some(last) = ended.next_back() {
        troubles.failed(now, &part.agent, failed, last.reason);
    }
    if update.state.is_terminal() && update.state != TaskState::Finished && to_blame(update.state, update.reason) {
        troubles.failed(now, &part.agent, 1, update.reason);
    }
}

impl Pool {
    /// Items `0..total`, all ready.
    #[must_use]
    pub fn new(total: u64, has_splits: bool) -> Self {
        let mut pool = Self { total, has_splits, ..Self::default() };
        pool.put_back(&ItemSet::range(0, total));
        pool
    }

    /// Items that can be handed out now.
    #[must_use]
    pub fn ready(&self) -> u64 {
        self.ready.values().map(ItemSet::len).sum()
    }

    /// Items handed out without an outcome.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.parts.values().map(|p| p.outstanding.len()).sum()
    }

    /// Its parts by number.
    pub fn parts(&self) -> impl Iterator<Item = (&u32, &Part)> {
        self.parts.iter()
    }

    /// Whether every item has its outcome.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.ready.is_empty() && self.delayed.is_empty() && self.parts.values().all(|p| p.outstanding.is_empty())
    }

    /// Slots that parts hold.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.parts.values().map(|p| p.slots).sum()
    }

    /// When the next item's back-off ends.
    #[must_use]
    pub fn next_wake(&self) -> Option<Time> {
        self.delayed.keys().next().copied()
    }

    /// What all items used so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let mut sum = self.past_usage;
        self.parts.values().for_each(|p| sum.add(&p.usage));
        sum
    }

    /// Takes up to `n` items that share an attempt number. Retries go first: they are the ones the end waits for.
    pub(crate) fn take(&mut self, n: u64) -> Option<(u32, ItemSet)> {
        let mut entry = self.ready.last_entry()?;
        let attempt = *entry.key();
        let mut taken = entry.get_mut().take_first(n);
        if taken.ranges().len() > MAX_BATCH_RANGES {
            let keep: ItemSet = taken.ranges().iter().take(MAX_BATCH_RANGES).copied().collect();
            entry.get_mut().extend(&taken.difference(&keep));
            taken = keep;
        }
        if entry.get().is_empty() {
            entry.remove();
        }
        (!taken.is_empty()).then_some((attempt, taken))
    }

    /// Items come back without having been started.
    pub(crate) fn put_back(&mut self, items: &ItemSet) {
        for (tries, items) in self.by_tries(items) {
            self.ready.entry(tries.attempt()).or_default().extend(&items);
        }
    }

    /// Back-offs that are over.
    pub fn wake(&mut self, now: Time) -> bool {
        let later = self.delayed.split_off(&Time(now.0.saturating_add(1)));
        let due = std::mem::replace(&mut self.delayed, later);
        due.values().for_each(|items| self.put_back(items));
        !due.is_empty()
    }

    /// An update about part `number`. Returns whether an item failed for good.
    pub fn apply(&mut self, now: Time, number: u32, update: &StatusUpdate, rules: Rules, troubles: &mut Troubles) -> bool {
        let Some(part) = self.parts.get_mut(&number).filter(|p| p.is_live()) else { return false };
        part.heard(now, update);
        note(now, part, update, troubles);
        let mut failed = false;
        if let Some(delta) = &update.array {
            // Only what was handed out can end or come back: an agent cannot speak about other items.
            let finished = delta.finished.intersection(&part.outstanding);
            part.outstanding = part.outstanding.difference(&finished);
            part.finished.extend(&finished);
            let ended: ItemSet = delta.failed.iter().map(|f| f.item).collect();
            let ended = ended.intersection(&part.outstanding);
            part.outstanding = part.outstanding.difference(&ended);
            // What comes back from a part that could not even begin shares its failure: going back untried, it would be
            // launched the same way again and again.
            let shares_failure = never_began(part, update);
            let returned = if shares_failure { ItemSet::default() } else { delta.returned.intersection(&part.outstanding) };
            part.outstanding = part.outstanding.difference(&returned);
            let agent = part.agent.clone();
            self.finished.extend(&finished);
            self.keep_results(&delta.results);
            self.back_or_cancelled(&returned, rules);
            let mut seen = ItemSet::default();
            for f in delta.failed.iter().filter(|f| ended.contains(f.item)) {
                if !seen.contains(f.item) {
                    seen.insert(f.item);
                    let failure = Failure {
                        state: f.state,
                        reason: f.reason,
                        message: f.message.clone(),
                        exit_code: f.exit_code,
                        attempt: f.attempt,
                        agent: Some(agent.clone()),
                    };
                    failed |= self.judge(now, &ItemSet::range(f.item, f.item + 1), number, &failure, rules);
                }
            }
        }
        if update.state.is_terminal() || update.state == TaskState::Unreachable {
            failed |= self.end_part(now, number, update, rules);
        }
        failed
    }

    /// An agent is gone: what it had runs elsewhere, and what it had finished is computed again, because its output is gone; but for `kept`,
    /// whose outputs are somewhere else.
    /// Returns whether an item failed for good.
    pub fn lose_agent(&mut self, now: Time, agent: &AgentId, rules: Rules, kept: &ItemSet) -> bool {
        let numbers: Vec<u32> = self.parts.iter().filter(|(_, p)| p.agent == *agent && !p.lost).map(|(n, _)| *n).collect();
        let mut failed = false;
        for number in numbers {
            let Some(part) = self.parts.get_mut(&number) else { continue };
            if part.is_live() {
                (part.state, part.reason) = (TaskState::Gone, Reason::AgentRemoved);
                (part.slots, part.open, part.asked_back) = (0, false, None);
            }
            let mut again = std::mem::take(&mut part.outstanding);
            if !rules.ending {
                let lost = part.finished.difference(kept);
                part.finished = part.finished.intersection(kept);
                self.finished = self.finished.difference(&lost);
                again.extend(&lost);
            }
            part.lost = true;
            let failure = Failure {
                state: TaskState::Gone,
                reason: Reason::AgentRemoved,
                message: format!("agent {agent} is gone"),
                exit_code: None,
                attempt: 0,
                agent: Some(agent.clone()),
            };
            failed |= self.judge(now, &again, number, &failure, rules);
            self.forget_if_empty(number);
        }
        failed
    }

    /// Gives up every item that is not handed out.
    pub fn cancel_waiting(&mut self) {
        for items in std::mem::take(&mut self.ready).into_values().chain(std::mem::take(&mut self.delayed).into_values()) {
            self.cancelled.extend(&items);
        }
    }

    /// How often an item has failed.
    #[must_use]
    pub fn tries_of(&self, item: u64) -> Tries {
        self.tried.iter().find(|(_, s)| s.contains(item)).map_or_else(Tries::default, |(t, _)| *t)
    }

    /// A part ended: what it still had goes back or fails.
    fn end_part(&mut self, now: Time, number: u32, update: &StatusUpdate, rules: Rules) -> bool {
        let Some(part) = self.parts.get_mut(&number) else { return false };
        let left = std::mem::take(&mut part.outstanding);
        let agent = part.agent.clone();
        let mut failed = false;
        if !left.is_empty() {
            // FINISHED with items left over would be an agent's mistake: run them elsewhere rather than believe it.
            let (state, reason) = match update.state {
                TaskState::Finished => (TaskState::Lost, Reason::None),
                // Its agent may come back with it: then it is told to stop. What it had finished stays where it is.
                TaskState::Unreachable => (TaskState::Lost, Reason::AgentDisconnected),
                state => (state, update.reason),
            };
            let failure =
                Failure { state, reason, message: update.message.clone(), exit_code: update.exit_code, attempt: 0, agent: Some(agent) };
            failed = self.judge(now, &left, number, &failure, rules);
            // The whole part failed for good: the rest would fare the same on every agent, one launch after another.
            if failed && !rules.ending {
                let rest = self.take_waiting();
                self.fail(&rest, None, &failure);
            }
        }
        self.forget_if_empty(number);
        failed
    }

    fn take_waiting(&mut self) -> ItemSet {
        let mut all = ItemSet::default();
        for items in std::mem::take(&mut self.ready).into_values().chain(std::mem::take(&mut self.delayed).into_values()) {
            all.extend(&items);
        }
        all
    }

    /// Items that failed the same way: tried again or failed for good. Returns whether any failed for good.
    fn judge(&mut self, now: Time, items: &ItemSet, part: u32, failure: &Failure, rules: Rules) -> bool {
        let blame = retry::blame(failure.state, failure.reason);
        if rules.ending && matches!(blame, Blame::Request | Blame::Infrastructure) {
            // Not what the job failed of: the item would be going on.
            self.cancelled.extend(items);
            return false;
        }
        let retries = if rules.ending { 0 } else { rules.retries };
        let mut any = false;
        for (tries, items) in self.by_tries(items) {
            match retry::verdict(now, blame, tries, retries) {
                Verdict::Again(at, next) => {
                    self.set_tries(&items, next);
                    let failure = Failure { attempt: tries.attempt(), ..failure.clone() };
                    self.put_back_last = Some(PutBack { failure, items: items.len(), not_before: at });
                    if at <= now { self.put_back(&items) } else { self.delayed.entry(at).or_default().extend(&items) }
                }
                Verdict::GiveUp => {
                    any = true;
                    self.fail(&items, Some(part), &Failure { attempt: tries.attempt(), ..failure.clone() });
                }
            }
        }
        any
    }

    fn fail(&mut self, items: &ItemSet, part: Option<u32>, failure: &Failure) {
        self.failed.extend(items);
        if let Some(part) = part.and_then(|n| self.parts.get_mut(&n)) {
            part.failed.extend(items);
        }
        for item in items.iter().take(MAX_FAILURES_KEPT) {
            self.failures.insert(item, failure.clone());
        }
        while self.failures.len() > MAX_FAILURES_KEPT {
            self.failures.pop_last();
        }
    }

    fn back_or_cancelled(&mut self, items: &ItemSet, rules: Rules) {
        if rules.ending {
            self.cancelled.extend(items);
        } else {
            self.put_back(items);
        }
    }

    /// Splits a set by how often its items have failed.
    fn by_tries(&self, items: &ItemSet) -> Vec<(Tries, ItemSet)> {
        let mut rest = items.clone();
        let mut out = Vec::new();
        for (tries, set) in &self.tried {
            let common = rest.intersection(set);
            if !common.is_empty() {
                rest = rest.difference(&common);
                out.push((*tries, common));
            }
        }
        if !rest.is_empty() {
            out.push((Tries::default(), rest));
        }
        out
    }

    fn set_tries(&mut self, items: &ItemSet, next: Tries) {
        for (_, set) in &mut self.tried {
            *set = set.difference(items);
        }
        match self.tried.iter_mut().find(|(t, _)| *t == next) {
            Some((_, set)) => set.extend(items),
            None => self.tried.push((next, items.clone())),
        }
        self.tried.retain(|(_, set)| !set.is_empty());
    }

    fn keep_results(&mut self, results: &[(u64, Vec<u8>)]) {
        let mut kept: usize = self.results.values().map(Vec::len).sum();
        for (item, value) in results.iter().filter(|(i, _)| *i < self.total) {
            kept += value.len();
            if kept > MAX_RESULT_BYTES {
                return;
            }
            self.results.insert(*item, value.clone());
        }
    }

    /// A part that ended without leaving any output says nothing more.
    fn forget_if_empty(&mut self, number: u32) {
        if self.parts.get(&number).is_some_and(|p| !p.is_live() && p.finished.is_empty() && p.failed.is_empty())
            && let Some(part) = self.parts.remove(&number)
        {
            self.past_usage.add(&part.usage);
        }
    }
}
