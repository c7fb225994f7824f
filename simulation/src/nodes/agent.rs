//! An agent's process with its executors: what its shell does for the core, with random delays and failures.

use crate::executor::{Action, Executor, Inside};
use crate::network::ToMaster;
use crate::rng::Rng;
use crate::world::{Happening, Node, Peer, World};
use smalti_agent_core::{Agent, Event, Failure, Message, Parameters};
use smalti_master_core::AgentMessage;
use smalti_types::protocol::Registration;
use smalti_types::{AgentId, AgentInfo, Attributes, Bytes, Digest, DurationMs, ExecutorId, MilliCpus, PortRange, Reason, Resources, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

/// An agent, or the place where it was.
#[derive(Debug)]
pub(crate) struct AgentNode {
    index: usize,
    total: Resources,
    pub(crate) core: Option<Agent>,
    pub(crate) life: u64,
    /// Its connection, registered or not.
    pub(crate) conn: Option<u64>,
    executors: BTreeMap<ExecutorId, Executor>,
    /// Those of this life that have had the only task of theirs.
    bound: BTreeSet<ExecutorId>,
}

impl AgentNode {
    pub(crate) fn new(index: usize, rng: &mut Rng) -> Self {
        let mut total = Resources::new(MilliCpus(rng.between(2, 8) * 1_000), Bytes::gib(rng.between(2, 8)));
        total.ports = vec![PortRange { first: 31_000, last: 31_010 }].into();
        Self { index, total, core: None, life: 0, conn: None, executors: BTreeMap::new(), bound: BTreeSet::new() }
    }

    pub(crate) fn id(&self) -> AgentId {
        AgentId::new(format!("agent-{}", self.index)).expect("letters, digits and a dash")
    }

    pub(crate) fn start(&mut self) {
        self.life += 1;
        let parameters = Parameters {
            slots_per_executor: 4,
            most_slots_per_executor: 8,
            most_executors: 3,
            pool: 1,
            most_processes: 5,
            most_starting: 2,
            idle_stop: DurationMs(1_500),
            ..Parameters::new(self.total.clone())
        };
        self.core = Some(Agent::new(parameters));
    }

    pub(crate) fn crash(&mut self) {
        self.core = None;
        self.conn = None;
        self.executors.clear();
        self.bound.clear();
    }

    /// A connection stands: what is said first on it.
    pub(crate) fn connected(&mut self, conn: u64, now: Time) -> Registration {
        self.conn = Some(conn);
        let (tasks, unacknowledged) = self.core.as_mut().map(|core| core.registration(now)).unwrap_or_default();
        let info = AgentInfo {
            id: self.id(),
            hostname: "host".into(),
            total: self.total.clone(),
            overhead: Resources::default(),
            attributes: Attributes::default(),
            isolation: BTreeMap::new(),
            boot_id: "boot".into(),
            incarnation: self.life,
        };
        Registration { info, tasks, unacknowledged }
    }

    /// What keeps it from being at rest.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let Some(core) = &self.core else { return Some(format!("{} is down", self.id())) };
        if core.live() > 0 || !core.held().is_empty() {
            return Some(format!("{} still has {} attempts that hold {}", self.id(), core.live(), core.held()));
        }
        None
    }
}

impl World {
    pub(crate) fn agent_hears(&mut self, i: usize, message: AgentMessage) -> Result<(), String> {
        let life = self.agents[i].life;
        match message {
            AgentMessage::Registered { epoch } => self.agent_event(i, life, Event::MasterConnected { epoch }),
            AgentMessage::Command(command) => self.agent_event(i, life, Event::Command(command)),
            AgentMessage::Refused(reason) => Err(format!("{} was refused: {reason}", self.agents[i].id())),
        }
    }

    pub(crate) fn agent_event(&mut self, i: usize, life: u64, event: Event) -> Result<(), String> {
        if self.life(Node::Peer(Peer::Agent(i))) != Some(life) {
            return Ok(());
        }
        let node = &mut self.agents[i];
        let Some(core) = &mut node.core else { return Ok(()) };
        let effects = core.step(self.now, event);
        core.check_invariants().map_err(|e| format!("{}: {e}", node.id()))?;
        let messages = effects.commit(|_| Ok::<_, Infallible>(())).unwrap_or_else(|never| match never {});
        for message in messages {
            self.agent_acts(i, life, message)?;
        }
        Ok(())
    }

    fn agent_acts(&mut self, i: usize, life: u64, message: Message) -> Result<(), String> {
        match message {
            Message::Updates(updates) => {
                if let Some(conn) = self.agents[i].conn {
                    self.say_to_master(conn, ToMaster::Updates(updates));
                }
            }
            Message::Prepare { run, spec, .. } => {
                let result = if self.rng.chance(4) { Err(Failure::new(Reason::FetchFailed, "not there")) } else { Ok(spec.bundle.digest) };
                let us = if self.rng.chance(10) { self.rng.between(10_000, 2_000_000) } else { self.rng.between(50, 5_000) };
                self.after(us, Happening::Agent(i, life, Event::Prepared { run, result }));
            }
            Message::StartExecutor { executor, slots, .. } => {
                let us = self.rng.between(500, 50_000);
                let event = if self.rng.chance(5) {
                    Event::ExecutorFailed { executor, reason: Reason::LaunchFailed, message: "no memory".into() }
                } else {
                    self.agents[i].executors.insert(executor.clone(), Executor::new(slots));
                    Event::ExecutorStarted { executor, slots }
                };
                self.after(us, Happening::Agent(i, life, event));
            }
            Message::BindExecutor { executor, key } => {
                if !self.agents[i].bound.insert(executor.clone()) {
                    return Err(format!("executor {executor} had its only task, and gets {key}"));
                }
            }
            Message::DiscardExecutor { executor } => self.end_executor(i, life, executor, "its task is over"),
            Message::StopExecutor { executor } => self.end_executor(i, life, executor, "it was told to"),
            Message::KillExecutor { executor, .. } => self.end_executor(i, life, executor, "it was killed"),
            Message::ToExecutor { executor, message } => {
                if !self.agents[i].executors.contains_key(&executor) {
                    // It died, and the news is on its way.
                    return Ok(());
                }
                // The socket keeps its order, so the delay is the same for all.
                self.after(20, Happening::Executor(i, life, executor, Inside::Told(message)));
            }
            Message::CancelPrepare { .. }
            | Message::SetSlotCpus { .. }
            | Message::SlotsIdle { .. }
            | Message::SetExecutorMemory { .. }
            | Message::Ended { .. } => {}
        }
        Ok(())
    }

    fn end_executor(&mut self, i: usize, life: u64, executor: ExecutorId, cause: &str) {
        if self.agents[i].executors.remove(&executor).is_some() {
            let out_of_memory = self.rng.chance(20);
            let us = self.rng.between(100, 5_000);
            self.after(us, Happening::Agent(i, life, Event::ExecutorExited { executor, cause: cause.into(), out_of_memory }));
        }
    }

    /// A fault: an executor dies with everything in it.
    pub(crate) fn kill_executor(&mut self, i: usize) -> Result<(), String> {
        let Some(life) = self.life(Node::Peer(Peer::Agent(i))) else { return Ok(()) };
        let ids: Vec<ExecutorId> = self.agents[i].executors.keys().cloned().collect();
        if !ids.is_empty() {
            let id = ids[self.rng.index(ids.len())].clone();
            self.log.add(format_args!("{} executor {id} of agent {i} dies", self.now.0));
            self.end_executor(i, life, id, "signal 9");
        }
        Ok(())
    }

    pub(crate) fn executor_happens(&mut self, i: usize, life: u64, id: ExecutorId, inside: Inside) -> Result<(), String> {
        if self.life(Node::Peer(Peer::Agent(i))) != Some(life) {
            return Ok(());
        }
        let Some(executor) = self.agents[i].executors.get_mut(&id) else { return Ok(()) };
        let actions = executor.happen(inside, &mut self.rng).map_err(|e| format!("executor {id}: {e}"))?;
        for action in actions {
            match action {
                Action::Say(message) => {
                    let event = Event::Executor { executor: id.clone(), number: 0, message };
                    self.after(20, Happening::Agent(i, life, event));
                }
                Action::After(us, inside) => self.after(us, Happening::Executor(i, life, id.clone(), inside)),
                Action::Starts(key) => {
                    let agent = self.agents[i].id();
                    self.checks.start(key, agent)?;
                }
            }
        }
        Ok(())
    }
}

/// What every simulated task runs.
pub(crate) fn bundle(n: u64) -> Digest {
    Digest::of(&n.to_le_bytes())
}
