//! An agent's process and machine: what its shell does for the core, with random delays and failures. Its executors are processes of
//! their own (see `executors`); what it does on a full disk is in `stall`.

mod checkpoint;
mod executors;
mod stall;

use crate::executor::{Entry, Executor};
use crate::faults::{WriteCrash, write_crash};
use crate::machine::Machine;
use crate::network::ToMaster;
use crate::nodes::LEASE;
use crate::rng::Rng;
use crate::world::{Happening, Node, Peer, World};
use checkpoint::{Checkpoint, Trouble};
use smalti_agent_core::{Agent, Event, Failure, Message, Parameters, Record};
use smalti_master_core::AgentMessage;
use smalti_types::protocol::Registration;
use smalti_types::{
    AgentId, AgentInfo, Attributes, Bytes, Digest, DurationMs, Effects, ExecutorId, ItemSet, MilliCpus, PortRange, Reason, Resources, Time,
};
use stall::Stall;
use std::collections::BTreeMap;

/// An agent, or the place where it was.
#[derive(Debug)]
pub(crate) struct AgentNode {
    index: usize,
    total: Resources,
    pub(crate) machine: Machine,
    pub(crate) core: Option<Agent>,
    pub(crate) life: u64,
    /// Its connection, registered or not.
    pub(crate) conn: Option<u64>,
    /// Executor processes on the machine, whichever life of the agent started them.
    executors: BTreeMap<u64, Executor>,
    processes: u64,
    /// Which process the agent of this life knows under which name.
    links: BTreeMap<ExecutorId, u64>,
    /// The same the other way round.
    names: BTreeMap<u64, ExecutorId>,
    /// What executors that are gone have written about items.
    ledgers: BTreeMap<ExecutorId, Vec<Entry>>,
    checkpoint: Checkpoint,
    /// A batch that the full disk does not take, and all that has come since.
    stall: Option<Stall>,
    /// When it last asked for a lease.
    asked: Time,
}

impl AgentNode {
    pub(crate) fn new(index: usize, rng: &mut Rng) -> Self {
        let mut total = Resources::new(MilliCpus(rng.between(2, 8) * 1_000), Bytes::gib(rng.between(2, 8)));
        total.ports = vec![PortRange { first: 31_000, last: 31_010 }].into();
        Self {
            index,
            total,
            machine: Machine::new(rng),
            core: None,
            life: 0,
            conn: None,
            executors: BTreeMap::new(),
            processes: 0,
            links: BTreeMap::new(),
            names: BTreeMap::new(),
            ledgers: BTreeMap::new(),
            checkpoint: Checkpoint::default(),
            stall: None,
            asked: Time(0),
        }
    }

    pub(crate) fn id(&self) -> AgentId {
        AgentId::new(format!("agent-{}", self.index)).expect("letters, digits and a dash")
    }

    /// The process is gone; executors and disk are not.
    pub(crate) fn crash(&mut self) {
        self.core = None;
        self.checkpoint.close();
        self.stall = None;
        self.conn = None;
        self.links.clear();
        self.names.clear();
    }

    /// A connection stands: what is said first on it.
    pub(crate) fn connected(&mut self, conn: u64, now: Time) -> Registration {
        self.conn = Some(conn);
        let now = self.machine.clock.wall(now);
        let (tasks, unacknowledged) = self.core.as_mut().map(|core| core.registration(now)).unwrap_or_default();
        let info = AgentInfo {
            id: self.id(),
            hostname: "host".into(),
            total: self.total.clone(),
            overhead: Resources::default(),
            attributes: Attributes::default(),
            isolation: BTreeMap::new(),
            boot_id: format!("boot-{}", self.machine.boot),
            // It goes on with its tasks, unless the machine was booted.
            incarnation: self.machine.boot,
        };
        Registration { info, tasks, unacknowledged }
    }

    /// Whether its loop waits for room on its disk.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stall.is_some()
    }

    /// What keeps it from being at rest.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let Some(core) = &self.core else { return Some(format!("{} is down", self.id())) };
        if core.live() > 0 || !core.held().is_empty() {
            return Some(format!("{} still has {} attempts that hold {}", self.id(), core.live(), core.held()));
        }
        if !core.is_empty() {
            return Some(format!("{} still has {} attempts whose end is not acknowledged", self.id(), core.len()));
        }
        let busy = self.executors.values().find(|e| !e.is_idle());
        busy.map(|e| format!("{}: executor {} runs something: {:?}", self.id(), e.id, e.holds()))
    }

    /// What must hold at the end.
    pub(crate) fn check_end(&self) -> Result<(), String> {
        match self.executors.iter().find(|(process, _)| !self.names.contains_key(process)) {
            Some((_, e)) => Err(format!("{}: executor {} was left behind", self.id(), e.id)),
            None => Ok(()),
        }
    }
}

fn parameters(total: &Resources) -> Parameters {
    Parameters {
        slots_per_executor: 4,
        grown_slots: 6,
        most_slots_per_executor: 8,
        most_executors: 3,
        most_slots: 14,
        pool: 1,
        most_processes: 5,
        most_starting: 2,
        idle_stop: DurationMs(1_500),
        ..Parameters::new(total.clone())
    }
}

impl World {
    pub(crate) fn start_agent(&mut self, i: usize) -> Result<(), String> {
        let node = &mut self.agents[i];
        node.life += 1;
        node.asked = Time(0);
        let now = node.machine.clock.wall(self.now);
        let boot = node.machine.boot;
        let (records, same_boot) = match node.checkpoint.open(&node.machine.disk, boot) {
            Ok(opened) => opened,
            Err(trouble) => return self.agent_cannot(i, &trouble),
        };
        let node = &mut self.agents[i];
        let core = Agent::restore(parameters(&node.total), records, same_boot);
        let snapshot = node.checkpoint.snapshot(core.checkpoint(), self.calm, &mut self.rng);
        let to_find: Vec<ExecutorId> = core.to_find().cloned().collect();
        node.core = Some(core);
        if let Err(trouble) = snapshot {
            return self.agent_cannot(i, &trouble);
        }
        self.find_executors(i, &to_find);
        let Some(core) = &mut self.agents[i].core else { return Ok(()) };
        let effects = core.resume(now);
        core.check_invariants().map_err(|e| format!("agent {i} resumed: {e}"))?;
        self.agent_commits(i, effects)
    }

    /// Its checkpoint fails: the process ends, or was killed in it.
    fn agent_cannot(&mut self, i: usize, trouble: &Trouble) -> Result<(), String> {
        match trouble {
            Trouble::Wrong(problem) => Err(format!("{}: {problem}", self.agents[i].id())),
            Trouble::Full | Trouble::Killed => {
                self.faults += 1;
                let machine = *trouble == Trouble::Killed && self.rng.chance(30);
                self.note(format_args!("agent {i}: its checkpoint is {trouble:?}"));
                self.crash(Node::Peer(Peer::Agent(i)), machine);
                Ok(())
            }
        }
    }

    /// The machine loses its power: with it go its executors.
    pub(crate) fn agent_power_fails(&mut self, i: usize) {
        let all: Vec<u64> = self.agents[i].executors.keys().copied().collect();
        all.into_iter().for_each(|process| self.executor_dies(i, process));
        self.agents[i].machine.power_fails(self.now, &mut self.rng);
    }

    pub(crate) fn agent_hears(&mut self, i: usize, message: AgentMessage) -> Result<(), String> {
        let life = self.agents[i].life;
        match message {
            AgentMessage::Registered { epoch } => self.agent_event(i, life, Event::MasterConnected { epoch }),
            AgentMessage::Command(command) => self.agent_event(i, life, Event::Command(command)),
            AgentMessage::Located { .. } => Err(format!("{} was told where to fetch from and has not asked", self.agents[i].id())),
            AgentMessage::Refused(reason) => Err(format!("{} was refused: {reason}", self.agents[i].id())),
        }
    }

    pub(crate) fn agent_tick(&mut self, i: usize, life: u64) -> Result<(), String> {
        if self.agents[i].stall.is_some() {
            // Heartbeats are not the loop's.
            self.ask_for_lease(i);
            return Ok(());
        }
        self.agent_event(i, life, Event::Tick)
    }

    /// An agent with exclusive tasks asks for its lease: at once for the first, then every third of it.
    fn ask_for_lease(&mut self, i: usize) {
        let node = &mut self.agents[i];
        let due = self.now.micros_since(node.asked) >= LEASE.0 * 1_000 / 3 || node.asked == Time(0);
        let Some(conn) = node.conn.filter(|_| due && node.core.as_ref().is_some_and(Agent::wants_lease)) else { return };
        node.asked = self.now;
        let asked = node.machine.clock.boot(self.now);
        self.say_to_master(conn, ToMaster::Lease(asked));
    }

    pub(crate) fn agent_event(&mut self, i: usize, life: u64, event: Event) -> Result<(), String> {
        if self.life(Node::Peer(Peer::Agent(i))) != Some(life) {
            return Ok(());
        }
        let node = &mut self.agents[i];
        if let Some(stall) = &mut node.stall {
            stall.waits(event);
            return Ok(());
        }
        let now = node.machine.clock.wall(self.now);
        let Some(core) = &mut node.core else { return Ok(()) };
        let effects = core.step(now, event);
        core.check_invariants().map_err(|e| format!("{}: {e}", node.id()))?;
        self.agent_commits(i, effects)?;
        self.ask_for_lease(i);
        Ok(())
    }

    fn agent_commits(&mut self, i: usize, effects: Effects<Record, Message>) -> Result<(), String> {
        let node = &mut self.agents[i];
        let life = node.life;
        let (checkpoint, disk) = (&mut node.checkpoint, &node.machine.disk);
        let full = disk.borrow().full.then(|| effects.clone());
        let mut failed = None;
        let persist = |records: Vec<Record>| {
            let crash = write_crash(records.len(), self.calm, &mut self.rng);
            if crash != Err(WriteCrash::Before) && !records.is_empty() {
                failed = checkpoint.append(records).err();
            }
            if failed.is_none() && crash == Err(WriteCrash::Within) {
                disk.borrow_mut().tear(&mut self.rng);
            }
            crash.map_err(|_| ()).and_then(|()| if failed.is_some() { Err(()) } else { Ok(()) })
        };
        let committed = effects.commit(persist);
        match (committed, failed, full) {
            (Ok(messages), ..) => self.agent_does(i, life, messages),
            (Err(()), Some(Trouble::Full), Some(effects)) => self.stall_agent(i, effects),
            (Err(()), Some(trouble), _) => self.agent_cannot(i, &trouble),
            (Err(()), None, _) => {
                self.faults += 1;
                self.crash(Node::Peer(Peer::Agent(i)), false);
                Ok(())
            }
        }
    }

    /// What was decided is durable, and is done now; then the shell looks after its log.
    fn agent_does(&mut self, i: usize, life: u64, messages: Vec<Message>) -> Result<(), String> {
        let node = &mut self.agents[i];
        if node.checkpoint.wants_snapshot()
            && let Some(core) = &node.core
            && let Err(trouble) = node.checkpoint.snapshot(core.checkpoint(), self.calm, &mut self.rng)
            // One that finds no room is tried again with the next batch.
            && trouble != Trouble::Full
        {
            return self.agent_cannot(i, &trouble);
        }
        let crash = self.send_crash(messages.len());
        for message in messages.into_iter().take(crash.unwrap_or(usize::MAX)) {
            self.agent_acts(i, life, message)?;
        }
        if crash.is_some() {
            self.crash(Node::Peer(Peer::Agent(i)), false);
            return Ok(());
        }
        let node = &mut self.agents[i];
        let Some(core) = &node.core else { return Ok(()) };
        match node.checkpoint.room_changed(core.len()) {
            Ok(None) => Ok(()),
            Ok(Some(room)) => self.agent_event(i, life, Event::Room(room)),
            Err(trouble) => self.agent_cannot(i, &trouble),
        }
    }

    fn agent_acts(&mut self, i: usize, life: u64, message: Message) -> Result<(), String> {
        match message {
            Message::Updates(updates) => {
                updates.iter().try_for_each(|u| self.checks.say(u))?;
                if let Some(conn) = self.agents[i].conn {
                    self.say_to_master(conn, ToMaster::Updates(updates));
                }
            }
            Message::Prepare { run, spec, .. } => {
                let result = if self.rng.chance(4) { Err(Failure::new(Reason::FetchFailed, "not there")) } else { Ok(spec.bundle.digest) };
                let us = if self.rng.chance(10) { self.rng.between(10_000, 2_000_000) } else { self.rng.between(50, 5_000) };
                self.after(us, Happening::Agent(i, life, Event::Prepared { run, result }));
            }
            Message::FetchSplits { run, wanted, .. } => {
                for (split, _) in wanted {
                    let us = if self.rng.chance(10) { self.rng.between(10_000, 2_000_000) } else { self.rng.between(50, 5_000) };
                    let items = ItemSet::range(split.item, split.item + 1);
                    self.after(us, Happening::Agent(i, life, Event::SplitsThere { run, items }));
                }
            }
            Message::StartExecutor { executor, slots, .. } => self.start_executor(i, life, executor, slots),
            Message::BindExecutor { executor, key } => self.bind_executor(i, &executor, &key)?,
            Message::DiscardExecutor { executor } => self.end_executor(i, &executor, "its task is over"),
            Message::StopExecutor { executor } => self.end_executor(i, &executor, "it was told to"),
            Message::KillExecutor { executor, .. } => self.end_executor(i, &executor, "it was killed"),
            Message::ToExecutor { executor, message } => self.tell_executor(i, &executor, message),
            Message::CancelPrepare { .. }
            | Message::DropSplits { .. }
            | Message::SetSlotCpus { .. }
            | Message::SlotsIdle { .. }
            | Message::SetExecutorMemory { .. }
            | Message::Ended { .. } => {}
        }
        Ok(())
    }
}

/// What every simulated task runs.
pub(crate) fn bundle(n: u64) -> Digest {
    Digest::of(&n.to_le_bytes())
}
