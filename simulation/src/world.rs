//! The world: virtual time, what will happen when, the nodes, and the order in which everything takes effect.
//!
//! One thing happens at a time; what it causes is scheduled. Nothing here decides what a node does: the cores do. What breaks is in
//! `faults`.

use crate::checks::Checks;
use crate::executor::Inside;
use crate::log::Log;
use crate::machine::Machine;
use crate::network::{Network, Packet, ToMaster, ToPeer, Way};
use crate::nodes::{AgentNode, FrameworkNode, MasterNode};
use crate::report::Config;
use crate::rng::Rng;
use smalti_agent_core as agent;
use smalti_types::{ExecutorId, Time};
use std::collections::BTreeMap;

/// Time-outs of cores hang on ticks about this often, in microseconds.
pub(crate) const TICK_US: u64 = 100_000;
/// Agents up to which each ticks that often; ticks of more are farther apart, so that a large world is not only ticks.
const AGENTS_AT_FULL_PACE: u64 = 500;
/// Virtual time that the world has to settle in after the last fault, in microseconds.
const SETTLE_US: u64 = 300_000_000;

/// Somebody who connects to the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    Agent(usize),
    Framework(usize),
}

/// A process that can crash, on a machine of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Master,
    Peer(Peer),
}

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A message comes to the end of its way: on which connection, which one.
    Arrives(u64, u64, Packet),
    /// The master notices that a connection is broken.
    MasterNotices(u64),
    /// The master closes its end of a connection.
    MasterCloses(u64),
    /// The peer notices.
    PeerNotices(u64),
    /// An end has heard nothing since this partition began.
    Silence(u64, Way, u64),
    /// A partition is over.
    Heals(u64),
    /// A peer in this life tries to connect.
    Connect(Peer, u64),
    /// Time passes for a node in this life.
    Tick(Node, u64),
    /// The master's inbox is drained, in this life.
    BatchEnd(u64),
    /// Something outside of its core reaches an agent in this life.
    Agent(usize, u64, agent::Event),
    /// A new life of an agent looks for an executor of the last one.
    Find(usize, u64, ExecutorId),
    /// An agent's order reaches one of its executor processes.
    Told(usize, u64, agent::ToExecutor),
    /// What an executor process says reaches the agent in this life: its number, what.
    Said(usize, u64, u64, u64, agent::FromExecutor),
    /// Something happens in an executor process.
    Inside(usize, u64, Inside),
    /// The handler of a framework in this life looks at its inbox.
    Handle(usize, u64),
    /// Something breaks.
    Fault,
    /// A crashed node starts again.
    Start(Node),
    /// There may be room on a node's disk again.
    Room(Node),
    /// An agent of this life tries again to write to its full disk.
    TryToWrite(usize, u64),
    /// A scheduler of this framework that was fenced out goes on.
    Fenced(usize, u64),
}

/// Everything there is.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) rng: Rng,
    pub(crate) log: Log,
    pub(crate) network: Network,
    pub(crate) master: MasterNode,
    pub(crate) agents: Vec<AgentNode>,
    pub(crate) frameworks: Vec<FrameworkNode>,
    pub(crate) checks: Checks,
    /// No more faults.
    pub(crate) calm: bool,
    queue: BTreeMap<(Time, u64), Happening>,
    scheduled: u64,
    pub(crate) steps: u64,
    pub(crate) faults: u64,
    tick_us: u64,
}

impl World {
    pub(crate) fn new(seed: u64, config: &Config, log: Log) -> Self {
        let mut rng = Rng::new(seed);
        let master = MasterNode::new(config.agents, &mut rng);
        let agents = (0..config.agents).map(|i| AgentNode::new(i, &mut rng)).collect();
        let frameworks = (0..config.frameworks).map(|i| FrameworkNode::new(i, &mut rng)).collect();
        let mut world = Self {
            now: Time(1_000_000),
            rng,
            log,
            network: Network::default(),
            master,
            agents,
            frameworks,
            checks: Checks::default(),
            calm: false,
            queue: BTreeMap::new(),
            scheduled: 0,
            steps: 0,
            faults: 0,
            tick_us: TICK_US * (config.agents as u64 / AGENTS_AT_FULL_PACE).max(1),
        };
        world.after(0, Happening::Start(Node::Master));
        for peer in world.peers() {
            let us = world.rng.below(200_000);
            world.after(us, Happening::Start(Node::Peer(peer)));
        }
        world.after(500_000, Happening::Fault);
        world
    }

    pub(crate) fn peers(&self) -> Vec<Peer> {
        let agents = (0..self.agents.len()).map(Peer::Agent);
        agents.chain((0..self.frameworks.len()).map(Peer::Framework)).collect()
    }

    /// Runs until `steps` things have happened, then without faults until everything has settled; or until `until`.
    pub(crate) fn run(&mut self, steps: u64, until: u64) -> Result<(), String> {
        while self.steps < steps {
            self.next()?;
            if self.steps >= until {
                return Ok(());
            }
        }
        self.be_calm()?;
        let deadline = Time(self.now.0 + SETTLE_US);
        let mut next_look = self.now;
        while self.now < deadline {
            self.next()?;
            if self.steps >= until {
                return Ok(());
            }
            if self.now >= next_look {
                next_look = Time(self.now.0 + self.tick_us);
                if self.unsettled().is_none() {
                    return self.check_end();
                }
            }
        }
        let left = self.unsettled().unwrap_or_default();
        Err(format!("nothing broke for {} s, and still: {left}", SETTLE_US / 1_000_000))
    }

    fn next(&mut self) -> Result<(), String> {
        let Some(((at, _), happening)) = self.queue.pop_first() else { return Err("nothing happens any more".into()) };
        self.now = at;
        self.steps += 1;
        self.happen(happening)
    }

    /// Schedules something.
    pub(crate) fn after(&mut self, us: u64, happening: Happening) {
        self.at(Time(self.now.0 + us), happening);
    }

    pub(crate) fn at(&mut self, time: Time, happening: Happening) {
        self.scheduled += 1;
        self.queue.insert((time.max(self.now), self.scheduled), happening);
    }

    /// Writes a line about what happens now.
    pub(crate) fn note(&mut self, line: std::fmt::Arguments<'_>) {
        self.log.add(format_args!("{} {} {line}", self.steps, self.now.0));
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        if !matches!(happening, Happening::Tick(..) | Happening::BatchEnd(_) | Happening::Handle(..)) {
            self.note(format_args!("{happening:?}"));
        }
        match happening {
            Happening::Arrives(conn, number, packet) => match self.network.arrive(conn, number, packet) {
                Some(packet) => self.heard(conn, packet),
                None => Ok(()),
            },
            Happening::MasterNotices(conn) => self.master_notices(conn),
            Happening::MasterCloses(conn) => {
                self.network.close(conn, Way::ToMaster);
                Ok(())
            }
            Happening::PeerNotices(conn) => self.peer_notices(conn),
            Happening::Silence(conn, end, partition) => self.silence(conn, end, partition),
            Happening::Heals(partition) => self.heal(partition),
            Happening::Connect(peer, life) => self.connect(peer, life),
            Happening::Tick(node, life) => self.tick(node, life),
            Happening::BatchEnd(life) => self.batch_end(life),
            Happening::Agent(i, life, event) => self.agent_event(i, life, event),
            Happening::Find(i, life, id) => self.find_executor(i, life, id),
            Happening::Told(i, process, message) => self.executor_told(i, process, message),
            Happening::Said(i, life, process, number, message) => self.executor_said(i, life, process, number, message),
            Happening::Inside(i, process, inside) => self.executor_happens(i, process, inside),
            Happening::Handle(i, life) => self.handle(i, life),
            Happening::Fault => self.fault(),
            Happening::Start(node) => self.start(node),
            Happening::Room(node) => self.room(node),
            Happening::TryToWrite(i, life) => self.try_to_write(i, life),
            Happening::Fenced(i, conn) => self.fenced_goes_on(i, conn),
        }
    }

    /// A message is heard at its end.
    pub(crate) fn heard(&mut self, conn: u64, packet: Packet) -> Result<(), String> {
        match packet {
            Packet::ToMaster(message) => self.master_hears(conn, message),
            Packet::ToPeer(message) => self.peer_hears(conn, message),
        }
    }

    fn tick(&mut self, node: Node, life: u64) -> Result<(), String> {
        if self.life(node) != Some(life) {
            return Ok(());
        }
        let us = if matches!(node, Node::Peer(Peer::Agent(_))) { self.tick_us } else { TICK_US };
        self.after(us, Happening::Tick(node, life));
        match node {
            Node::Master => self.master_tick(),
            Node::Peer(Peer::Agent(i)) => self.agent_tick(i, life),
            Node::Peer(Peer::Framework(i)) => self.framework_tick(i),
        }
    }

    pub(crate) fn machine(&mut self, node: Node) -> &mut Machine {
        match node {
            Node::Master => &mut self.master.machine,
            Node::Peer(Peer::Agent(i)) => &mut self.agents[i].machine,
            Node::Peer(Peer::Framework(i)) => &mut self.frameworks[i].machine,
        }
    }

    /// The current life of a node that is running.
    pub(crate) fn life(&self, node: Node) -> Option<u64> {
        match node {
            Node::Master => self.master.core.is_some().then_some(self.master.life),
            Node::Peer(Peer::Agent(i)) => self.agents[i].core.is_some().then_some(self.agents[i].life),
            Node::Peer(Peer::Framework(i)) => self.frameworks[i].client.is_some().then_some(self.frameworks[i].life),
        }
    }

    fn start(&mut self, node: Node) -> Result<(), String> {
        if self.life(node).is_some() {
            return Ok(());
        }
        // Master and schedulers write before they do anything; an agent finds out by itself.
        if !matches!(node, Node::Peer(Peer::Agent(_))) && self.machine(node).disk.borrow().full {
            let us = self.rng.between(300_000, 1_000_000);
            self.after(us, Happening::Start(node));
            return Ok(());
        }
        match node {
            Node::Master => self.start_master()?,
            Node::Peer(Peer::Agent(i)) => self.start_agent(i)?,
            Node::Peer(Peer::Framework(i)) => self.start_framework(i)?,
        }
        let Some(life) = self.life(node) else { return Ok(()) };
        let phase = self.rng.below(if matches!(node, Node::Peer(Peer::Agent(_))) { self.tick_us } else { TICK_US });
        self.after(phase, Happening::Tick(node, life));
        if let Node::Peer(peer) = node {
            self.after(0, Happening::Connect(peer, life));
        }
        Ok(())
    }

    /// Sends something to the master.
    pub(crate) fn say_to_master(&mut self, conn: u64, message: ToMaster) {
        if let Some((number, at)) = self.network.send(conn, Way::ToMaster, self.now, &mut self.rng) {
            self.at(at, Happening::Arrives(conn, number, Packet::ToMaster(message)));
        }
    }

    /// Sends something to a peer.
    pub(crate) fn say_to_peer(&mut self, conn: u64, message: ToPeer) {
        if let Some((number, at)) = self.network.send(conn, Way::ToPeer, self.now, &mut self.rng) {
            self.at(at, Happening::Arrives(conn, number, Packet::ToPeer(message)));
        }
    }
}
