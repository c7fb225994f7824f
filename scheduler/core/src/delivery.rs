//! Outputs on their way into the store that a job names: which are there, which are to be written next, and how the job ends.
//!
//! The shell writes; it is asked for as long as the job lives ([`Job::deliverable`]) and tells what came of it ([`Delivered`]). What is
//! there is kept with the job's state, so a later life of the scheduler goes on with the rest; what was written and not kept is written
//! once more, under the same name. With a reduce, the last one's output is the job's, and items' outputs go nowhere.

use crate::id::JobId;
use crate::job::{Job, Stage};
use crate::launch::sources;
use crate::outcome::Outcome;
use crate::pool::Pool;
use crate::retry::Blame;
use crate::run::Turn;
use serde::{Deserialize, Serialize};
use smalti_types::task::OutputSource;
use smalti_types::{AgentId, FrameworkId, ItemSet, Reason, Role, TaskId, TaskState, Time};

/// How far a job's outputs are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Delivery {
    /// Items whose outputs are there, or that have none.
    pub stored: ItemSet,
    /// Why nothing can be written at present.
    pub trouble: Option<String>,
    /// How the job ends once everything is there.
    pub outcome: Option<Outcome>,
}

/// What came of writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivered {
    /// Outputs of these items are there.
    Items(ItemSet),
    /// That of this attempt of the one task is.
    Task(u32),
    /// The store does not take them, or they cannot be read.
    Trouble {
        /// For people.
        why: String,
        /// It was tried for as long as makes sense.
        for_good: bool,
        /// Which agent does not give them, if it is one's fault.
        agent: Option<AgentId>,
    },
}

/// What is to be written next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deliverable {
    /// Where to.
    pub store: String,
    /// In whose name.
    pub role: Role,
    /// Whose tasks they are.
    pub framework: Option<FrameworkId>,
    /// Outputs of items, disjoint.
    pub items: Vec<OutputSource>,
    /// The number of the attempt that counted, of those items that did not succeed at once.
    pub attempts: Vec<(u32, ItemSet)>,
    /// The one task, if it is one's output: where, which, its attempt, and what it is called.
    pub task: Option<(AgentId, TaskId, u32, &'static str)>,
    /// The job waits for nothing else.
    pub is_last: bool,
}

impl Deliverable {
    /// Whether there is nothing to write now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.task.is_none()
    }

    /// The attempt of an item that counted.
    #[must_use]
    pub fn attempt(&self, item: u64) -> u32 {
        self.attempts.iter().find(|(_, items)| items.contains(item)).map_or(0, |(attempt, _)| *attempt)
    }
}

/// Keeps at most `most` items of `all`, the lowest of each source.
fn first(all: Vec<OutputSource>, most: u64) -> Vec<OutputSource> {
    let mut left = most;
    let mut kept = Vec::new();
    for mut source in all {
        let items = source.items.take_first(left);
        left -= items.len();
        if !items.is_empty() {
            kept.push(OutputSource { items, ..source });
        }
    }
    kept
}

impl Job {
    /// Whether the outputs of its items are what goes into its store.
    fn delivers_items(&self) -> bool {
        self.spec.map().is_some_and(|m| m.reduce.is_none())
    }

    /// Outputs that are not there yet.
    fn undelivered(&self, pool: &Pool) -> Vec<OutputSource> {
        let all = sources(self.id(), self.state.round, pool, true).into_iter();
        let rest = all.map(|s| OutputSource { items: s.items.difference(&self.state.delivery.stored), ..s });
        rest.filter(|s| !s.items.is_empty()).collect()
    }

    /// What is to be written next, at most this many items; `None` when the job is over or has no store.
    #[must_use]
    pub fn deliverable(&self, most: u64) -> Option<Deliverable> {
        let store = self.spec.output_store.clone().filter(|_| self.state.stage != Stage::Over)?;
        let is_last = self.state.stage == Stage::Delivering;
        let (mut items, mut attempts, mut task) = (Vec::new(), Vec::new(), None);
        match &self.state.pool {
            Some(pool) if self.delivers_items() => {
                items = first(self.undelivered(pool), most);
                attempts = pool.tried.iter().map(|(tries, items)| (tries.attempt(), items.clone())).collect();
            }
            _ if is_last => {
                let name = if self.spec.map().is_some() { "reduce" } else { "task" };
                task = self.state.run.as_ref().and_then(|r| Some((r.agent.clone()?, r.task.clone(), r.attempt(), name)));
            }
            _ => {}
        }
        Some(Deliverable { store, role: self.spec.role.clone(), framework: self.state.framework.clone(), items, attempts, task, is_last })
    }

    /// Whether something has to be written before the job may end like this.
    pub(crate) fn is_owed(&self, outcome: &Outcome) -> bool {
        if self.spec.output_store.is_none() || outcome.state == TaskState::Killed {
            return false;
        }
        match &self.state.pool {
            Some(pool) if self.delivers_items() => !self.undelivered(pool).is_empty(),
            Some(_) if outcome.state != TaskState::Finished && self.state.run.is_none() => false,
            // What never ran has printed nothing.
            _ => self.state.run.as_ref().is_some_and(|r| r.agent.is_some() && (r.started.is_some() || r.state == TaskState::Finished)),
        }
    }

    /// The shell says how far it is.
    pub fn on_delivered(&mut self, now: Time, what: Delivered) {
        let is_last = self.state.stage == Stage::Delivering;
        match what {
            _ if self.state.stage == Stage::Over => {}
            Delivered::Items(items) => {
                self.state.delivery.trouble = None;
                // What is computed again meanwhile has another attempt, which is not there.
                let there = self.state.pool.as_ref().map(|p| p.finished.union(&p.failed)).unwrap_or_default();
                self.state.delivery.stored.extend(&items.intersection(&there));
                if is_last && self.state.pool.as_ref().is_none_or(|p| self.undelivered(p).is_empty()) {
                    self.deliver_last(now);
                }
            }
            Delivered::Task(attempt) => {
                if is_last && self.state.run.as_ref().is_some_and(|r| r.attempt() == attempt) {
                    self.state.delivery.trouble = None;
                    self.deliver_last(now);
                }
            }
            Delivered::Trouble { why, for_good, agent } => {
                self.state.delivery.trouble = Some(why.clone());
                match agent {
                    _ if !is_last || !for_good => {}
                    Some(agent) => self.compute_again(now, &agent, &why),
                    None => {
                        let outcome = self.undeliverable(&why);
                        self.finish(now, outcome);
                    }
                }
            }
        }
    }

    fn deliver_last(&mut self, now: Time) {
        let outcome = self.state.delivery.outcome.take().unwrap_or_else(Outcome::finished);
        self.finish(now, outcome);
    }

    /// How the job ends when its outputs cannot be written. What failed before that stays what failed.
    fn undeliverable(&mut self, why: &str) -> Outcome {
        let advice = format!("{why}; what the agents still have of it `smalti logs {}` shows", self.id());
        match self.state.delivery.outcome.take() {
            Some(failed) if failed.state != TaskState::Finished => {
                Outcome { message: format!("{}; and {advice}", failed.message), ..failed }
            }
            _ => Outcome {
                state: TaskState::Failed,
                exit_code: Reason::OutputFailed.exit_code(None),
                reason: Reason::OutputFailed,
                message: advice,
            },
        }
    }

    /// What this agent had and does not give: it runs elsewhere, as after a failure of the infrastructure. What failed is not run again
    /// for the sake of its output.
    pub(crate) fn compute_again(&mut self, now: Time, agent: &AgentId, why: &str) {
        if self.state.stage != Stage::Delivering {
            return;
        }
        if self.delivers_items() {
            let failed = self.failed_on(agent);
            self.state.delivery.stored.extend(&failed);
            let (rules, kept) = (self.rules(), self.state.delivery.stored.clone());
            if let Some(pool) = &mut self.state.pool {
                pool.lose_agent(now, agent, rules, &kept);
            }
            self.state.delivery.outcome = None;
            self.state.stage = Stage::Map;
            return;
        }
        let Some(outcome) = self.state.delivery.outcome.take() else { return };
        if outcome.state != TaskState::Finished {
            self.finish(now, outcome);
            return;
        }
        self.state.stage = if self.spec.map().is_some() { Stage::Reduce } else { Stage::Single };
        let exclusive = self.spec.is_exclusive();
        let Some(run) = self.state.run.as_mut() else { return };
        run.message = format!("its output is lost: {why}");
        // What may run once at most is not run again because of what it printed.
        if exclusive || run.failed(now, Blame::Infrastructure, 0, false) == Turn::Failed {
            let outcome = self.undeliverable(why);
            self.finish(now, outcome);
        }
    }

    fn failed_on(&self, agent: &AgentId) -> ItemSet {
        let parts = self.state.pool.iter().flat_map(|p| p.parts.values()).filter(|p| p.agent == *agent);
        parts.fold(ItemSet::default(), |all, part| all.union(&part.failed))
    }

    /// What a reader of the items' outputs must know: which are in the store and nowhere else.
    #[must_use]
    pub fn only_stored(&self) -> ItemSet {
        let Some(pool) = self.state.pool.as_ref().filter(|_| self.spec.output_store.is_some()) else { return ItemSet::default() };
        let lost = pool.parts.values().filter(|p| p.lost).fold(ItemSet::default(), |all, p| all.union(&p.finished));
        lost.intersection(&self.state.delivery.stored)
    }
}

/// What outputs are called below the store: `JOB/ITEM.ATTEMPT.stdout`, and `task` or `reduce` in the place of an item.
#[must_use]
pub fn output_name(job: JobId, what: &str, attempt: u32, stream: &str) -> String {
    format!("{job}/{what}.{attempt}.{stream}")
}
