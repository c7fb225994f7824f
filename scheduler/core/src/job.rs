//! One job: where it stands, and what moves it on.
//!
//! | stage | we are in it while | next |
//! |---|---|---|
//! | Single | the one task waits, runs, or is tried again | Over |
//! | Map | items of this round have no outcome yet | Reduce, Over |
//! | Reduce | the round's last task waits, runs, or is tried again | Storing, Over; Map when outputs it reads are lost |
//! | Storing | its stdout is copied into the cluster's store | Map of the next round; Reduce when the copy fails |
//! | Delivering | its outputs are written to the store that it names, and nothing else is to be done | Over; Single, Reduce or Map when outputs are lost |
//! | Over | the job has its outcome | |

use crate::delivery::Delivery;
use crate::event::Message;
use crate::feed::Order;
use crate::id::{JobId, TaskName};
use crate::outcome::{Ending, Outcome};
use crate::part::Part;
use crate::placing::Request;
use crate::pool::{Pool, Rules};
use crate::retry::Blame;
use crate::run::{TaskRun, Turn};
use crate::spec::{JobSpec, Work};
use crate::trouble::Troubles;
use crate::wanted::{AllWanted, Patience};
use serde::{Deserialize, Serialize};
use smalti_types::protocol::Call;
use smalti_types::{AgentId, DurationMs, FrameworkId, Input, ItemBatch, ItemSet, PortSet, Reason, Split, StatusUpdate, TaskId, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// So often a reduce may fail to read an agent's outputs before they are computed again elsewhere.
const MOST_UNREAD: u32 = 2;

/// Whether `text` begins with this id and not with a longer one.
fn is_first_word(text: &str, id: &str) -> bool {
    text.strip_prefix(id).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
}

/// Where a job stands; the table above says what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// One task.
    Single,
    /// Items.
    Map,
    /// The round's last task.
    Reduce,
    /// Between two rounds.
    Storing,
    /// The last outputs go to the job's store.
    Delivering,
    /// Done.
    Over,
}

/// What of a job changes; with its specification it is what the store keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    /// When it was submitted.
    pub submitted: Time,
    /// When it got its outcome.
    pub finished: Option<Time>,
    /// Where it stands.
    pub stage: Stage,
    /// Whether something has been launched.
    pub begun: bool,
    /// It is being ended before its time.
    pub ending: Option<Ending>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Under which framework it was last launched.
    pub framework: Option<FrameworkId>,
    /// Round, from 0.
    pub round: u32,
    /// `/smalti/state` of this round.
    pub state_input: Option<Input>,
    /// Items of this round.
    pub pool: Option<Pool>,
    /// The single task or this round's reduce.
    pub run: Option<TaskRun>,
    /// Agents where its attempts keep failing.
    #[serde(default)]
    pub troubles: Troubles,
    /// Agents whose outputs the reduce could not read, and how often.
    #[serde(default)]
    pub unread: BTreeMap<AgentId, u32>,
    /// Agents that were lost while the reduce was on its way: should it fail, their outputs are why.
    pub lost_agents: BTreeSet<AgentId>,
    /// How far its outputs are on their way to its store.
    #[serde(default)]
    pub delivery: Delivery,
}

/// A job.
#[derive(Debug, Clone)]
pub struct Job {
    /// What is to be done.
    pub spec: Arc<JobSpec>,
    /// How far it is.
    pub state: JobState,
    /// Agents that its next task or part must not go to. Worked out when offers come, and not kept.
    pub avoided: Vec<AgentId>,
    /// What its tasks read. Worked out of the specification, and not kept.
    pub(crate) wanted: AllWanted,
    /// While it lasts, offers of agents that hold less of this than another are let pass. Not kept.
    pub(crate) patience: Option<Box<Patience>>,
}

/// What a job wants of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Nothing now.
    Nothing,
    /// Room for one task.
    Task,
    /// Up to so many slots.
    Slots(u64),
}

impl Job {
    /// A job that was just submitted.
    #[must_use]
    pub fn new(now: Time, spec: Arc<JobSpec>) -> Self {
        let mut state = JobState {
            submitted: now,
            finished: None,
            stage: Stage::Single,
            begun: false,
            ending: None,
            outcome: None,
            framework: None,
            round: 0,
            state_input: None,
            pool: None,
            run: None,
            troubles: Troubles::default(),
            unread: BTreeMap::new(),
            lost_agents: BTreeSet::new(),
            delivery: Delivery::default(),
        };
        match &spec.work {
            Work::Single(_) => state.run = Some(TaskRun::new(spec.id.task(TaskName::Single))),
            Work::Map(map) => {
                state.stage = Stage::Map;
                state.state_input.clone_from(&map.initial_state);
                state.pool = Some(Pool::new(map.template.total_items, !map.splits.is_empty()));
            }
        }
        Self::restored(spec, state)
    }

    /// A job that is as far as this.
    pub(crate) fn restored(spec: Arc<JobSpec>, state: JobState) -> Self {
        let wanted = AllWanted::of(&spec);
        Self { spec, state, avoided: Vec::new(), wanted, patience: None }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.spec.id
    }

    /// Whether an agent still has something of it.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.state.run.as_ref().is_some_and(TaskRun::is_placed)
            || self.state.pool.as_ref().is_some_and(|p| p.parts.values().any(crate::part::Part::is_live))
    }

    /// What it wants of an offer.
    #[must_use]
    pub fn demand(&self, now: Time) -> Demand {
        if self.state.ending.is_some() {
            return Demand::Nothing;
        }
        match (self.state.stage, &self.state.run, &self.state.pool) {
            (Stage::Single | Stage::Reduce, Some(run), _) if run.is_ready(now) => Demand::Task,
            (Stage::Map, _, Some(pool)) => {
                let parallel = self.spec.policy.max_parallel.unwrap_or(u32::MAX).saturating_sub(pool.slots());
                match pool.wants_slots().min(parallel.into()) {
                    0 => Demand::Nothing,
                    n => Demand::Slots(n),
                }
            }
            _ => Demand::Nothing,
        }
    }

    /// When it may want something although nothing happens.
    #[must_use]
    pub fn next_wake(&self) -> Option<Time> {
        match self.state.stage {
            Stage::Single | Stage::Reduce => self.state.run.as_ref().and_then(TaskRun::next_wake),
            Stage::Map => self.state.pool.as_ref().and_then(Pool::next_wake),
            Stage::Storing | Stage::Delivering | Stage::Over => None,
        }
    }

    /// What its next task or slot needs.
    #[must_use]
    pub fn request(&self) -> Request<'_> {
        let constraints = self.spec.policy.constraints.as_slice();
        let (resources, ports) = match (&self.spec.work, self.state.stage) {
            (Work::Single(single), _) => (&single.resources, single.ports),
            (Work::Map(map), Stage::Reduce | Stage::Storing) => (map.reduce.as_ref().map_or(&map.slot_resources, |r| &r.resources), 0),
            (Work::Map(map), _) => (&map.slot_resources, 0),
        };
        Request { resources, ports, constraints, avoided: &self.avoided }
    }

    /// Whether it has launched this attempt, and not seen its end.
    #[must_use]
    pub fn has_live(&self, name: TaskName, task: &TaskId, attempt: u32) -> bool {
        match name {
            TaskName::Part { round, part } => {
                let pool = self.state.pool.as_ref().filter(|_| round == self.state.round && attempt == 0);
                pool.and_then(|p| p.parts.get(&part)).is_some_and(Part::is_live)
            }
            TaskName::Single | TaskName::Reduce { .. } => {
                self.state.run.as_ref().is_some_and(|r| r.task == *task && r.attempt() == attempt && r.is_placed())
            }
        }
    }

    /// Where its single task is, and which ports it was given there.
    pub(crate) fn listens(&self) -> Option<(&AgentId, &PortSet)> {
        let run = self.state.run.as_ref().filter(|r| r.is_placed())?;
        Some((run.agent.as_ref()?, &run.ports))
    }

    /// An update about one of its tasks.
    pub fn on_update(&mut self, now: Time, name: TaskName, update: &StatusUpdate, out: &mut Vec<Message>) {
        let rules = self.rules();
        match name {
            TaskName::Part { round, part } => {
                // Parts of earlier rounds have said all that matters.
                if round != self.state.round || update.key.task.attempt != 0 {
                    return;
                }
                let troubles = &mut self.state.troubles;
                let failed = self.state.pool.as_mut().is_some_and(|p| p.apply(now, part, update, rules, troubles));
                if failed && self.spec.policy.fail_fast && self.state.ending.is_none() && self.state.stage == Stage::Map {
                    self.end_early(now, Ending::FailFast, None, out);
                }
            }
            TaskName::Single | TaskName::Reduce { .. } => self.on_run_update(now, update, rules, out),
        }
        self.advance(now, out);
    }

    fn on_run_update(&mut self, now: Time, update: &StatusUpdate, rules: Rules, out: &mut Vec<Message>) {
        let unread = self.unread_source(update);
        let exclusive = self.spec.is_exclusive();
        let Some(run) = self.state.run.as_mut().filter(|r| r.task == update.key.task.task) else { return };
        let before = (run.attempt(), run.agent.clone());
        let turn = run.apply(now, update, rules, exclusive, unread.is_some());
        if let (Some(agent), true) = (before.1, update.key.task.attempt == before.0) {
            match turn {
                Turn::Goes => {}
                Turn::Finished => self.state.troubles.finished(&agent),
                Turn::Again | Turn::Failed => self.state.troubles.failed(now, &agent, 1, update.reason),
            }
        }
        if let Some(agent) = unread.filter(|_| matches!(turn, Turn::Again | Turn::Failed) && self.state.ending.is_none()) {
            let misses = self.state.unread.entry(agent.clone()).or_default();
            *misses += 1;
            if *misses >= MOST_UNREAD {
                // It is not coming back in time, or what it had is gone.
                self.state.unread.remove(&agent);
                self.state.lost_agents.insert(agent);
            }
        }
        match turn {
            Turn::Goes => {}
            Turn::Finished => self.run_finished(now, out),
            Turn::Again | Turn::Failed if !self.state.lost_agents.is_empty() && self.state.ending.is_none() => {
                self.recompute_lost(now, out);
            }
            Turn::Again => {}
            Turn::Failed => {
                let outcome = self.state.run.as_ref().map(|r| Outcome::of_failure(&r.failure(), self.state.ending));
                self.conclude(now, outcome.unwrap_or_else(Outcome::finished));
            }
        }
    }

    /// The agent whose outputs a reduce could not read, when that is what it failed of.
    fn unread_source(&self, update: &StatusUpdate) -> Option<AgentId> {
        if self.state.stage != Stage::Reduce || update.reason != Reason::InputFailed || !update.state.is_terminal() {
            return None;
        }
        // Statuses have words for this and no field; agents name each other in them.
        let names = |agent: &AgentId| update.message.split("agent ").skip(1).any(|rest| is_first_word(rest, agent.as_str()));
        let parts = self.state.pool.iter().flat_map(|p| p.parts.values()).filter(|p| !p.lost && !p.finished.is_empty());
        parts.map(|p| &p.agent).find(|agent| names(agent)).cloned()
    }

    fn run_finished(&mut self, now: Time, out: &mut Vec<Message>) {
        let rounds = self.spec.map().map_or(1, |m| m.rounds);
        if self.state.stage == Stage::Reduce && self.state.round + 1 < rounds && self.state.ending.is_none() {
            self.state.stage = Stage::Storing;
            self.store_output(out);
        } else {
            self.conclude(now, Outcome::finished());
        }
    }

    /// Asks for the copy of the round's result; also after a restart.
    pub fn store_output(&self, out: &mut Vec<Message>) {
        if self.state.stage != Stage::Storing {
            return;
        }
        if let Some((run, agent)) = self.state.run.as_ref().and_then(|r| Some((r, r.agent.clone()?))) {
            let (job, round) = (self.id(), self.state.round);
            out.push(Message::StoreOutput { job, round, agent, task: run.task.clone(), attempt: run.attempt() });
        }
    }

    /// The round's result is in the store, or could not be copied.
    pub fn on_stored(&mut self, now: Time, round: u32, result: Result<Input, String>, out: &mut Vec<Message>) {
        if self.state.stage != Stage::Storing || round != self.state.round {
            return;
        }
        match result {
            Ok(input) => {
                self.state.round += 1;
                self.state.state_input = Some(Input { guest_path: Some(crate::launch::STATE_PATH.into()), ..input });
                self.state.pool = self.spec.map().map(|m| Pool::new(m.template.total_items, !m.splits.is_empty()));
                self.state.run = None;
                self.state.lost_agents.clear();
                self.state.stage = Stage::Map;
                self.advance(now, out);
            }
            Err(message) => {
                // The output is out of reach: the reduce runs again, as after a failure of the infrastructure.
                self.state.stage = Stage::Reduce;
                let Some(run) = self.state.run.as_mut() else { return };
                run.message = format!("cannot read the result of round {}: {message}", round + 1);
                if run.failed(now, Blame::Infrastructure, 0, false) == Turn::Failed {
                    let outcome = Outcome::of_failure(&run.failure(), None);
                    self.finish(now, outcome);
                }
            }
        }
    }

    /// An agent is gone for good.
    pub fn on_agent_lost(&mut self, now: Time, agent: &AgentId, out: &mut Vec<Message>) {
        let concerned = self.state.pool.as_ref().is_some_and(|p| p.parts.values().any(|p| p.agent == *agent && !p.lost));
        match self.state.stage {
            Stage::Map if concerned => {
                let failed = self.lose_agent(now, agent, out);
                if failed && self.spec.policy.fail_fast && self.state.ending.is_none() {
                    self.end_early(now, Ending::FailFast, None, out);
                }
            }
            Stage::Reduce if concerned => {
                self.state.lost_agents.insert(agent.clone());
                if !self.state.run.as_ref().is_some_and(TaskRun::is_placed) {
                    self.recompute_lost(now, out);
                }
            }
            Stage::Delivering if concerned || self.state.run.as_ref().is_some_and(|r| r.agent.as_ref() == Some(agent)) => {
                self.compute_again(now, agent, &format!("agent {agent} is gone"));
            }
            _ => {}
        }
        self.advance(now, out);
    }

    /// What an agent had of the array runs elsewhere. A master that has not heard of its parts says nothing of their end, and nothing new
    /// when the agent is back with them: they are told to stop now, and the client sees to it, however long that takes.
    fn lose_agent(&mut self, now: Time, agent: &AgentId, out: &mut Vec<Message>) -> bool {
        let rules = self.rules();
        let parts = self.state.pool.iter().flat_map(|p| &p.parts);
        for (number, _) in parts.filter(|(_, p)| p.agent == *agent && p.is_live()) {
            self.call(Call::Kill { task: self.part_id(*number), attempt: 0, grace: None }, out);
        }
        // A reduce reads what agents have, and nothing else.
        let kept =
            if self.spec.map().is_some_and(|m| m.reduce.is_some()) { ItemSet::default() } else { self.state.delivery.stored.clone() };
        self.state.pool.as_mut().is_some_and(|p| p.lose_agent(now, agent, rules, &kept))
    }

    /// Back to the items whose outputs are lost. The reduce waits for them under its next attempt.
    fn recompute_lost(&mut self, now: Time, out: &mut Vec<Message>) {
        for agent in std::mem::take(&mut self.state.lost_agents) {
            self.lose_agent(now, &agent, out);
        }
        if let Some(run) = &mut self.state.run {
            if run.standing == crate::run::Standing::Over {
                run.ended = None;
                run.tries.infrastructure += 1;
            }
            run.standing = crate::run::Standing::Waiting { not_before: now };
            run.state = smalti_types::TaskState::Staging;
        }
        self.state.stage = Stage::Map;
    }

    /// Somebody wants it to end.
    pub fn kill(&mut self, now: Time, grace: Option<DurationMs>, out: &mut Vec<Message>) {
        if self.state.stage != Stage::Over {
            self.end_early(now, Ending::Killed, grace, out);
            self.advance(now, out);
        }
    }

    fn end_early(&mut self, now: Time, ending: Ending, grace: Option<DurationMs>, out: &mut Vec<Message>) {
        if self.state.ending != Some(Ending::Killed) {
            self.state.ending = Some(ending);
        }
        if let Some(pool) = &mut self.state.pool {
            pool.cancel_waiting();
        }
        if matches!(self.state.stage, Stage::Storing | Stage::Delivering) {
            self.finish(now, Outcome::killed());
        } else if self.state.stage != Stage::Map
            && let Some(run) = self.state.run.as_mut().filter(|r| r.next_wake().is_some())
        {
            run.cancel(now);
            self.finish(now, Outcome::killed());
        }
        self.send_kills(grace, out);
    }

    /// Tells every agent that has something of it to stop.
    pub fn send_kills(&self, grace: Option<DurationMs>, out: &mut Vec<Message>) {
        let mut kill = |task, attempt| self.call(Call::Kill { task, attempt, grace }, out);
        if let Some(run) = self.state.run.as_ref().filter(|r| r.is_placed()) {
            kill(run.task.clone(), run.attempt());
        }
        for (number, _) in self.state.pool.iter().flat_map(|p| &p.parts).filter(|(_, p)| p.is_live()) {
            kill(self.part_id(*number), 0);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Time, out: &mut Vec<Message>) -> bool {
        let woken = self.state.stage == Stage::Map && self.state.pool.as_mut().is_some_and(|p| p.wake(now));
        let before = out.len();
        self.advance(now, out);
        woken || out.len() > before
    }

    /// Moves on as far as what is known allows, and hands out items.
    pub fn advance(&mut self, now: Time, out: &mut Vec<Message>) {
        if self.state.stage != Stage::Map {
            return;
        }
        let Some(pool) = &mut self.state.pool else { return };
        let mut orders = Vec::new();
        match (self.state.ending, pool.is_settled()) {
            // What is being killed needs no other word.
            (Some(_), _) => {}
            (None, true) => pool.close_all(&mut orders),
            (None, false) => {
                pool.leave(now, &self.state.troubles, &mut orders);
                orders.extend(pool.feed(now));
            }
        }
        let settled = pool.is_settled();
        for order in orders {
            self.send_order(order, out);
        }
        if settled {
            self.items_done(now);
        }
    }

    /// Every item of the round has its outcome.
    fn items_done(&mut self, now: Time) {
        let Some(pool) = &self.state.pool else { return };
        let failure = pool.failed.first().and_then(|i| pool.failures.get(&i).map(|f| (i, f)));
        let outcome = match (self.state.ending, failure) {
            (Some(Ending::Killed), _) => Outcome::killed(),
            (_, Some((item, failure))) => Outcome::of_item(item, failure, pool.failed.len()),
            (Some(Ending::FailFast), None) => Outcome::killed(),
            (None, None) if self.spec.map().is_some_and(|m| m.reduce.is_some()) => {
                let name = TaskName::Reduce { round: self.state.round };
                self.state.run.get_or_insert_with(|| TaskRun::new(self.spec.id.task(name)));
                self.state.stage = Stage::Reduce;
                return;
            }
            (None, None) => Outcome::finished(),
        };
        self.conclude(now, outcome);
    }

    /// It ends like this, once its outputs are where they belong.
    fn conclude(&mut self, now: Time, outcome: Outcome) {
        if self.is_owed(&outcome) {
            self.state.stage = Stage::Delivering;
            self.state.delivery.outcome = Some(outcome);
        } else {
            self.finish(now, outcome);
        }
    }

    pub(crate) fn finish(&mut self, now: Time, outcome: Outcome) {
        self.state.stage = Stage::Over;
        self.state.finished = Some(now);
        self.state.outcome = Some(outcome);
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules { retries: self.spec.policy.retries, ending: self.state.ending.is_some() }
    }

    pub(crate) fn part_id(&self, part: u32) -> smalti_types::TaskId {
        self.id().task(TaskName::Part { round: self.state.round, part })
    }

    pub(crate) fn call(&self, call: Call, out: &mut Vec<Message>) {
        out.push(Message::Call { role: self.spec.role.clone(), call });
    }

    pub(crate) fn send_order(&self, order: Order, out: &mut Vec<Message>) {
        let call = match order {
            Order::Assign { part, attempt, items, open } => {
                Call::AssignItems { task: self.part_id(part), attempt: 0, batch: self.batch(attempt, items), open }
            }
            Order::Close { part } => Call::AssignItems { task: self.part_id(part), attempt: 0, batch: ItemBatch::default(), open: false },
            Order::Return { part, most } => Call::ReturnItems { task: self.part_id(part), attempt: 0, most },
        };
        self.call(call, out);
    }

    /// Items with their splits.
    pub(crate) fn batch(&self, attempt: u32, items: ItemSet) -> ItemBatch {
        let all: &[Split] = self.spec.map().map_or(&[], |m| &m.splits);
        let index = |i: u64| usize::try_from(i).unwrap_or(usize::MAX).min(all.len());
        let splits = items.ranges().iter().filter_map(|r| all.get(index(r.first)..index(r.end))).flatten().copied().collect();
        ItemBatch { items, attempt, splits }
    }
}
