//! What must hold of the world as a whole, beyond the invariants of each core.
//!
//! Owns the memory of what has happened once and may not happen again, in any life of any process.

use crate::world::World;
use smalti_types::{AgentId, FrameworkId, OfferId, StatusUpdate, TaskId, TaskKey, TaskState};
use std::collections::{BTreeMap, BTreeSet};

/// Whether the cores keep what they need to go on after a crash: the SDK what was delivered, in one transaction with what its handler
/// makes of it; the master all that is not acknowledged.
const NOTHING_IS_LOST: bool = true;

/// What was committed of one attempt by a framework's handler.
#[derive(Debug, Default)]
struct Committed {
    numbers: BTreeSet<u64>,
    state: Option<TaskState>,
}

/// What has happened once and may not happen again.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    consumed: BTreeSet<OfferId>,
    started: BTreeMap<TaskKey, AgentId>,
    items: BTreeSet<(TaskKey, u64, u32)>,
    items_started: u64,
    /// Exclusive tasks whose guest runs now, with the attempt and where.
    running: BTreeMap<(FrameworkId, TaskId), (TaskKey, AgentId)>,
    /// What agents have said under each number of an attempt, until its end is committed.
    said: BTreeMap<TaskKey, BTreeMap<u64, Said>>,
    /// Launches that the master has accepted.
    accepted: BTreeSet<TaskKey>,
    committed: BTreeMap<TaskKey, Committed>,
    exactly_once: u64,
}

/// What an update said, as far as it may not change when it is said again.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    state: TaskState,
    exit_code: Option<i32>,
    array: Option<smalti_types::ArrayDelta>,
}

impl Checks {
    /// Offers were used for launches.
    pub(crate) fn consume(&mut self, offers: &[OfferId]) -> Result<(), String> {
        match offers.iter().find(|o| !self.consumed.insert(**o)) {
            Some(offer) => Err(format!("offer {offer} was used twice")),
            None => Ok(()),
        }
    }

    /// The master has accepted a launch.
    pub(crate) fn accept(&mut self, key: TaskKey) {
        self.accepted.insert(key);
    }

    /// An executor begins with an attempt.
    pub(crate) fn start(&mut self, key: &TaskKey, exclusive: bool, agent: &AgentId) -> Result<(), String> {
        if let Some(before) = self.started.insert(key.clone(), agent.clone()) {
            return Err(format!("{key} started on {before} and again on {agent}"));
        }
        if exclusive
            && let Some((other, there)) = self.running.insert((key.framework.clone(), key.task.clone()), (key.clone(), agent.clone()))
        {
            return Err(format!("{key} is exclusive and starts on {agent}, while {other} runs on {there}"));
        }
        Ok(())
    }

    /// The guest of an attempt is over.
    pub(crate) fn stop(&mut self, key: &TaskKey) {
        let name = (key.framework.clone(), key.task.clone());
        if self.running.get(&name).is_some_and(|(running, _)| running == key) {
            self.running.remove(&name);
        }
    }

    /// A slot begins with one execution of an item.
    pub(crate) fn start_item(&mut self, key: TaskKey, item: u64, attempt: u32) -> Result<(), String> {
        self.items_started += 1;
        if NOTHING_IS_LOST && self.items.contains(&(key.clone(), item, attempt)) {
            return Err(format!("item {item} of {key} started twice as attempt {attempt}"));
        }
        self.items.insert((key, item, attempt));
        Ok(())
    }

    /// An agent says this to the master: the same under the same number, whatever it went through in between.
    pub(crate) fn say(&mut self, update: &StatusUpdate) -> Result<(), String> {
        let mut array = update.array.clone();
        if let Some(delta) = &mut array {
            // What running items have used is cut to what can be believed at the time.
            delta.usage = smalti_types::Usage::default();
        }
        let said = Said { state: update.state, exit_code: update.exit_code, array };
        let numbers = self.said.entry(update.key.task.clone()).or_default();
        match numbers.get(&update.key.seq) {
            Some(before) if *before != said => Err(format!(
                "{} number {} was {before:?} and is now {said:?}: it was sent before it was kept",
                update.key.task, update.key.seq
            )),
            Some(_) => Ok(()),
            None => {
                numbers.insert(update.key.seq, said);
                Ok(())
            }
        }
    }

    /// A handler has committed an update together with its number.
    pub(crate) fn commit(&mut self, update: &StatusUpdate) -> Result<(), String> {
        let key = &update.key.task;
        if update.state == TaskState::Unknown {
            return Ok(());
        }
        let committed = self.committed.entry(key.clone()).or_default();
        if NOTHING_IS_LOST {
            if update.key.seq > 0 && !committed.numbers.insert(update.key.seq) {
                return Err(format!("{key} number {} was committed twice", update.key.seq));
            }
            if let Some(before) = committed.state
                && !before.may_become(update.state)
                && (before != update.state || before.is_terminal())
            {
                return Err(format!("{key} was committed as {before} and then as {}", update.state));
            }
            self.exactly_once += 1;
        }
        committed.state = Some(update.state);
        Ok(())
    }

    /// How many attempts started.
    pub(crate) fn starts(&self) -> u64 {
        self.started.len() as u64
    }

    /// How many items started.
    pub(crate) fn items(&self) -> u64 {
        self.items_started
    }

    /// Every launch that was accepted has its end with its framework.
    fn check_end(&self) -> Result<(), String> {
        for key in self.accepted.iter().filter(|_| NOTHING_IS_LOST) {
            match self.committed.get(key).and_then(|c| c.state) {
                Some(state) if state.is_terminal() => {}
                other => return Err(format!("{key} was accepted, and what its framework has of it is {other:?}")),
            }
        }
        match self.running.values().next() {
            Some((key, agent)) => Err(format!("{key} still runs on {agent}")),
            None => Ok(()),
        }
    }
}

impl World {
    /// What must hold when everything has come to rest.
    pub(crate) fn check_end(&self) -> Result<(), String> {
        self.checks.check_end()?;
        self.agents.iter().try_for_each(crate::nodes::AgentNode::check_end)
    }

    /// The first thing that is not at rest.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let Some(master) = &self.master.core else { return Some("the master is down".into()) };
        for framework in &self.frameworks {
            if let Some(problem) = framework.unsettled() {
                return Some(problem);
            }
        }
        for agent in &self.agents {
            if let Some(problem) = agent.unsettled() {
                return Some(problem);
            }
        }
        let mut registered = 0;
        for view in master.agent_views() {
            registered += 1;
            if view.state != smalti_master_core::AgentState::Active {
                return Some(format!("the master has no connection of {}", view.info.id));
            }
            if !view.used.is_empty() || view.tasks > 0 {
                return Some(format!("the master has {} attempts on {} that hold {}", view.tasks, view.info.id, view.used));
            }
        }
        if registered != self.agents.len() {
            return Some(format!("the master knows {registered} of {} agents", self.agents.len()));
        }
        let busy = master.framework_views().find(|f| f.tasks > 0 || !f.used.is_empty());
        busy.map(|f| format!("the master has {} attempts of {} that hold {}", f.tasks, f.id, f.used))
    }
}
