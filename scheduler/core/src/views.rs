//! What people and programs see of jobs, tasks and items, and where their outputs lie.

use crate::again::Again;
use crate::id::{JobId, TaskName};
use crate::job::{Job, Stage};
use crate::launch::sources;
use crate::part::Part;
use crate::pool::{Failure, Pool};
use crate::run::{Standing, TaskRun};
use crate::trouble::Trouble;
use smalti_types::task::OutputSource;
use smalti_types::{AgentId, FrameworkId, ItemSet, Reason, Resources, Role, TaskId, TaskState, Time, Usage};
use std::collections::BTreeMap;

/// A job as `jobs` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// Its id.
    pub job: JobId,
    /// For people.
    pub name: String,
    /// Under which role.
    pub role: Role,
    /// `run` or `map`.
    pub kind: &'static str,
    /// PENDING, RUNNING, FINISHED, FAILED, KILLED.
    pub state: &'static str,
    /// Of the current round; a single task counts as one.
    pub items_total: u64,
    /// With exit code 0.
    pub items_finished: u64,
    /// For good.
    pub items_failed: u64,
    /// Handed to an agent.
    pub items_running: u64,
    /// Once it is over.
    pub exit_code: Option<i32>,
    /// Once it is over.
    pub reason: Reason,
    /// Once it is over, or what it waits for.
    pub message: String,
    /// When it was submitted.
    pub submitted: Time,
    /// When it was over.
    pub finished: Option<Time>,
    /// `map`, `reduce`, `round 2/5: map`.
    pub phase: String,
    /// Finished items of the current round by the agent that ran them.
    pub items_by_agent: BTreeMap<AgentId, u64>,
    /// Under which framework it runs.
    pub framework: Option<FrameworkId>,
    /// What failed last and is tried again.
    pub again: Option<Again>,
    /// Where its outputs are written to.
    pub output_store: Option<String>,
    /// Items whose outputs are there.
    pub items_stored: u64,
}

/// A task, an array or an item as `ps` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskView {
    /// Task id; of an array, the job's.
    pub task: String,
    /// Its job.
    pub job: JobId,
    /// Which item, when it is one.
    pub item: Option<u64>,
    /// Under which framework.
    pub framework: Option<FrameworkId>,
    /// Where, once that is known.
    pub agent: Option<AgentId>,
    /// STAGING also while it waits for an offer: `agent` is `None` then.
    pub state: TaskState,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// The guest's.
    pub exit_code: Option<i32>,
    /// What it used.
    pub usage: Usage,
    /// Which attempt.
    pub attempt: u32,
    /// What it takes; of an array, one slot.
    pub resources: Resources,
    /// Items, for an array: all, finished, failed, handed out.
    pub items: [u64; 4],
    /// Thousandths and words.
    pub progress: Option<(u16, String)>,
    /// The guest's result value.
    pub result: Option<Vec<u8>>,
    /// When it began to run.
    pub started: Option<Time>,
    /// When it ended.
    pub ended: Option<Time>,
}

/// Where a job's output is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputPlan {
    /// Nothing of it has been placed, or it will not be.
    Nothing {
        /// Whether something may still come.
        over: bool,
    },
    /// One task: the job's, or its reduce.
    Task {
        /// On this agent.
        agent: AgentId,
        /// This task.
        task: TaskId,
        /// This attempt.
        attempt: u32,
        /// Whether it has ended for good.
        over: bool,
    },
    /// Items of an array.
    Items(ItemOutput),
}

/// Outputs of an array's items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemOutput {
    /// Where they lie, disjoint.
    pub sources: Vec<OutputSource>,
    /// Every item below this has its outcome: in item order this much can be shown.
    pub done_below: u64,
    /// Whether no more will come.
    pub over: bool,
}

impl Job {
    /// The job in numbers.
    #[must_use]
    pub fn view(&self) -> JobView {
        let (spec, state) = (&*self.spec, &self.state);
        let [total, finished, failed, running] = self.counts();
        let outcome = state.outcome.as_ref();
        let mut by_agent = BTreeMap::new();
        for part in state.pool.iter().flat_map(|p| p.parts.values()).filter(|p| !p.finished.is_empty()) {
            *by_agent.entry(part.agent.clone()).or_default() += part.finished.len();
        }
        if let Some(agent) = state.run.as_ref().and_then(|r| r.agent.clone()).filter(|_| spec.map().is_none() && finished == 1) {
            by_agent.insert(agent, 1);
        }
        JobView {
            job: spec.id,
            name: spec.name.clone(),
            role: spec.role.clone(),
            kind: if spec.map().is_some() { "map" } else { "run" },
            state: match outcome {
                Some(o) => o.state.as_str(),
                None if state.begun => "RUNNING",
                None => "PENDING",
            },
            items_total: total,
            items_finished: finished,
            items_failed: failed,
            items_running: running,
            exit_code: outcome.map(|o| o.exit_code),
            reason: outcome.map_or(Reason::None, |o| o.reason),
            message: match (outcome, &state.delivery.trouble) {
                (Some(outcome), _) => outcome.message.clone(),
                (None, Some(trouble)) => trouble.clone(),
                (None, None) => state.run.as_ref().map_or_else(String::new, |r| r.message.clone()),
            },
            output_store: spec.output_store.clone(),
            items_stored: state.delivery.stored.len(),
            submitted: state.submitted,
            finished: state.finished,
            phase: self.phase(),
            items_by_agent: by_agent,
            framework: state.framework.clone(),
            again: self.again(),
        }
    }

    fn phase(&self) -> String {
        let name = match (self.state.stage, self.spec.map()) {
            (_, None) => return String::new(),
            (Stage::Over, Some(_)) => return "done".into(),
            (Stage::Delivering, Some(_)) => return "storing outputs".into(),
            (Stage::Reduce | Stage::Storing, _) => "reduce",
            _ => "map",
        };
        match self.spec.map().map_or(1, |m| m.rounds) {
            0 | 1 => name.into(),
            n => format!("round {}/{n}: {name}", self.state.round + 1),
        }
    }

    /// Items of this round: all, finished, failed, handed out.
    #[must_use]
    pub fn counts(&self) -> [u64; 4] {
        match (&self.state.pool, &self.state.run) {
            (Some(pool), _) => [pool.total, pool.finished.len(), pool.failed.len(), pool.outstanding()],
            (None, Some(run)) => {
                let over = run.standing == Standing::Over;
                let finished = over && run.state == TaskState::Finished;
                [1, finished.into(), (over && !finished).into(), run.is_placed().into()]
            }
            (None, None) => [1, 0, 0, 0],
        }
    }

    /// Its tasks: the one, or the array as one line and the reduce.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskView> {
        let array = self.state.pool.as_ref().map(|pool| self.array_view(pool));
        array.into_iter().chain(self.state.run.as_ref().map(|run| self.run_view(run))).collect()
    }

    /// Items `from..`, at most `limit`.
    #[must_use]
    pub fn items(&self, from: u64, limit: usize) -> Vec<TaskView> {
        let Some(pool) = &self.state.pool else { return Vec::new() };
        (from..pool.total).take(limit).map(|item| self.item_view(pool, item)).collect()
    }

    fn blank(&self, task: String, resources: Resources) -> TaskView {
        TaskView {
            task,
            job: self.id(),
            item: None,
            framework: self.state.framework.clone(),
            agent: None,
            state: TaskState::Staging,
            reason: Reason::None,
            message: String::new(),
            exit_code: None,
            usage: Usage::default(),
            attempt: 0,
            resources,
            items: [0; 4],
            progress: None,
            result: None,
            started: None,
            ended: None,
        }
    }

    fn run_view(&self, run: &TaskRun) -> TaskView {
        let mut resources = self.run_resources();
        resources.ports = run.ports.clone();
        TaskView {
            agent: run.agent.clone().filter(|_| run.next_wake().is_none()),
            state: run.state,
            reason: run.reason,
            message: run.message.clone(),
            exit_code: run.exit_code,
            usage: run.usage,
            attempt: run.attempt(),
            progress: run.progress.clone(),
            result: run.result.clone(),
            started: run.started,
            ended: run.ended,
            ..self.blank(run.task.to_string(), resources)
        }
    }

    /// Agents where its attempts keep failing, in words.
    #[must_use]
    pub fn avoids(&self) -> Vec<String> {
        let words = |(agent, t): (&AgentId, &Trouble)| {
            format!("{} attempts in a row failed on agent {agent} ({}): it is avoided while there is another", t.streak, t.reason)
        };
        self.state.troubles.iter().map(words).collect()
    }

    fn run_resources(&self) -> Resources {
        match &self.spec.work {
            crate::spec::Work::Single(single) => single.resources.clone(),
            crate::spec::Work::Map(map) => map.reduce.as_ref().map(|r| r.resources.clone()).unwrap_or_default(),
        }
    }

    fn slot_resources(&self) -> Resources {
        self.spec.map().map(|m| m.slot_resources.clone()).unwrap_or_default()
    }

    fn array_view(&self, pool: &Pool) -> TaskView {
        let settled = pool.is_settled();
        let state = match (settled, pool.failed.is_empty(), pool.cancelled.is_empty()) {
            (false, ..) if self.state.begun => TaskState::Running,
            (false, ..) => TaskState::Staging,
            (true, true, true) => TaskState::Finished,
            (true, false, _) => TaskState::Failed,
            (true, true, false) => TaskState::Killed,
        };
        let failure = pool.failures.values().next();
        TaskView {
            state,
            reason: failure.filter(|_| settled).map_or(Reason::None, |f| f.reason),
            message: if settled { failure.map_or_else(String::new, |f| f.message.clone()) } else { self.avoids().join("; ") },
            usage: pool.usage(),
            items: self.counts(),
            started: pool.parts.values().map(|p| p.launched).min(),
            ended: self.state.finished.filter(|_| settled),
            ..self.blank(self.id().to_string(), self.slot_resources())
        }
    }

    fn item_view(&self, pool: &Pool, item: u64) -> TaskView {
        let at = |f: fn(&Part) -> &ItemSet| pool.parts.iter().find(|(_, p)| f(p).contains(item));
        let (part, state, failure): (_, _, Option<&Failure>) = if pool.finished.contains(item) {
            (at(|p| &p.finished), TaskState::Finished, None)
        } else if pool.failed.contains(item) {
            let failure = pool.failures.get(&item);
            (at(|p| &p.failed), failure.map_or(TaskState::Failed, |f| f.state), failure)
        } else if pool.cancelled.contains(item) {
            (None, TaskState::Killed, None)
        } else {
            let part = at(|p| &p.outstanding);
            (part, part.map_or(TaskState::Staging, |(_, p)| p.state), None)
        };
        let name = |n: u32| self.id().task(TaskName::Part { round: self.state.round, part: n }).to_string();
        let killed = pool.cancelled.contains(item);
        TaskView {
            item: Some(item),
            agent: part.map(|(_, p)| p.agent.clone()),
            state,
            reason: failure.map_or(if killed { Reason::KilledByRequest } else { Reason::None }, |f| f.reason),
            message: failure.map_or_else(String::new, |f| f.message.clone()),
            exit_code: failure.map_or_else(|| (state == TaskState::Finished).then_some(0), |f| f.exit_code),
            attempt: pool.tries_of(item).attempt(),
            result: pool.results.get(&item).cloned(),
            ..self.blank(part.map_or_else(|| self.id().to_string(), |(n, _)| name(*n)), self.slot_resources())
        }
    }

    /// Where the job's output lies: the task's, the items', or with a reduce the reduce's.
    #[must_use]
    pub fn output(&self, reduce: bool) -> OutputPlan {
        let over = self.state.outcome.is_some();
        let wants_run = self.spec.map().is_none_or(|m| reduce && m.reduce.is_some());
        if !wants_run {
            return self.item_output().map_or(OutputPlan::Nothing { over }, OutputPlan::Items);
        }
        let last = self.spec.map().is_none_or(|m| self.state.round + 1 >= m.rounds);
        match self.state.run.as_ref().and_then(|r| Some((r, r.agent.clone()?))) {
            Some((run, agent)) if last && run.next_wake().is_none() => {
                let over = over || run.standing == Standing::Over;
                OutputPlan::Task { agent, task: run.task.clone(), attempt: run.attempt(), over }
            }
            _ => OutputPlan::Nothing { over },
        }
    }

    /// Outputs of this round's items.
    #[must_use]
    pub fn item_output(&self) -> Option<ItemOutput> {
        let pool = self.state.pool.as_ref()?;
        let mut done = pool.finished.union(&pool.failed);
        done.extend(&pool.cancelled);
        let done_below = done.ranges().first().filter(|r| r.first == 0).map_or(0, |r| r.end);
        let over = pool.is_settled() || self.state.outcome.is_some();
        Some(ItemOutput { sources: sources(self.id(), self.state.round, pool, true), done_below, over })
    }

    /// The agent and attempt that has or had a task or item; `None` when nobody has it yet.
    #[must_use]
    pub fn locate(&self, name: Option<TaskName>, item: Option<u64>) -> Option<(AgentId, TaskId, u32)> {
        let pool = self.state.pool.as_ref();
        let run = || self.state.run.as_ref().and_then(|r| Some((r.agent.clone()?, r.task.clone(), r.attempt())));
        let part = |(n, p): (&u32, &Part)| (p.agent.clone(), self.part_id(*n), 0);
        match (name, item) {
            (_, Some(item)) => {
                let has = |p: &Part| p.finished.contains(item) || p.failed.contains(item) || p.outstanding.contains(item);
                pool?.parts.iter().find(|(_, p)| has(p)).map(part)
            }
            (Some(TaskName::Part { round, part: n }), _) if round == self.state.round => pool?.parts.get_key_value(&n).map(part),
            (Some(TaskName::Part { .. }), _) => None,
            (None | Some(TaskName::Single | TaskName::Reduce { .. }), None) => run(),
        }
    }
}
