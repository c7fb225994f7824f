//! The world: virtual time, what will happen when, the nodes, and the order in which everything takes effect.
//!
//! One thing happens at a time; what it causes is scheduled. Nothing here decides what a node does: the cores do.

use crate::checks::Checks;
use crate::executor::Inside;
use crate::log::Log;
use crate::network::{Network, ToMaster, ToPeer};
use crate::nodes::{AgentNode, FrameworkNode, MasterNode};
use crate::report::Config;
use crate::rng::Rng;
use smalti_agent_core as agent;
use smalti_types::{ExecutorId, Time};
use std::collections::BTreeMap;

/// Time-outs of cores hang on ticks about this often, in microseconds.
const TICK_US: u64 = 100_000;
/// Virtual time that the world has to settle in after the last fault, in microseconds.
const SETTLE_US: u64 = 120_000_000;

/// Somebody who connects to the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    Agent(usize),
    Framework(usize),
}

/// A process that can crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Master,
    Peer(Peer),
}

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Happening {
    /// Something arrives at the master.
    ToMaster(u64, ToMaster),
    /// Something arrives at a peer.
    ToPeer(u64, ToPeer),
    /// The master notices that a connection is broken.
    MasterNotices(u64),
    /// The peer notices.
    PeerNotices(u64),
    /// A peer in this life tries to connect.
    Connect(Peer, u64),
    /// Time passes for a node in this life.
    Tick(Node, u64),
    /// The master's inbox is drained, in this life.
    BatchEnd(u64),
    /// Something outside of its core reaches an agent in this life.
    Agent(usize, u64, agent::Event),
    /// Something happens in an executor of an agent in this life.
    Executor(usize, u64, ExecutorId, Inside),
    /// The handler of a framework in this life looks at its inbox.
    Handle(usize, u64),
    /// Something breaks.
    Fault,
    /// A crashed node starts again.
    Start(Node),
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
}

impl World {
    pub(crate) fn new(seed: u64, config: &Config) -> Self {
        let mut rng = Rng::new(seed);
        let agents = (0..config.agents).map(|i| AgentNode::new(i, &mut rng)).collect();
        let frameworks = (0..config.frameworks).map(|i| FrameworkNode::new(i, &mut rng)).collect();
        let mut world = Self {
            now: Time(1_000_000),
            rng,
            log: Log::new(config.keep_log),
            network: Network::default(),
            master: MasterNode::default(),
            agents,
            frameworks,
            checks: Checks::default(),
            calm: false,
            queue: BTreeMap::new(),
            scheduled: 0,
            steps: 0,
            faults: 0,
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

    /// Runs until `steps` things have happened, then without faults until everything has settled.
    pub(crate) fn run(&mut self, steps: u64) -> Result<(), String> {
        while self.steps < steps {
            self.next()?;
        }
        self.calm = true;
        self.log.add(format_args!("{} calm", self.now.0));
        let deadline = Time(self.now.0 + SETTLE_US);
        let mut next_look = self.now;
        while self.now < deadline {
            self.next()?;
            if self.now >= next_look {
                next_look = Time(self.now.0 + TICK_US);
                if self.unsettled().is_none() {
                    return Ok(());
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
        self.queue.insert((time, self.scheduled), happening);
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        if !matches!(happening, Happening::Tick(..) | Happening::BatchEnd(_) | Happening::Handle(..)) {
            self.log.add(format_args!("{} {happening:?}", self.now.0));
        }
        match happening {
            Happening::ToMaster(conn, message) if self.network.is_up(conn) => self.master_hears(conn, message),
            Happening::ToPeer(conn, message) if self.network.is_up(conn) => self.peer_hears(conn, message),
            Happening::ToMaster(..) | Happening::ToPeer(..) => Ok(()),
            Happening::MasterNotices(conn) => self.master_notices(conn),
            Happening::PeerNotices(conn) => self.peer_notices(conn),
            Happening::Connect(peer, life) => self.connect(peer, life),
            Happening::Tick(node, life) => self.tick(node, life),
            Happening::BatchEnd(life) => self.batch_end(life),
            Happening::Agent(i, life, event) => self.agent_event(i, life, event),
            Happening::Executor(i, life, id, inside) => self.executor_happens(i, life, id, inside),
            Happening::Handle(i, life) => self.handle(i, life),
            Happening::Fault => self.fault(),
            Happening::Start(node) => self.start(node),
        }
    }

    fn tick(&mut self, node: Node, life: u64) -> Result<(), String> {
        if self.life(node) != Some(life) {
            return Ok(());
        }
        self.after(TICK_US, Happening::Tick(node, life));
        match node {
            Node::Master => self.master_tick(),
            Node::Peer(Peer::Agent(i)) => self.agent_event(i, life, agent::Event::Tick),
            Node::Peer(Peer::Framework(i)) => self.framework_tick(i),
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
        match node {
            Node::Master => self.start_master(),
            Node::Peer(Peer::Agent(i)) => self.agents[i].start(),
            Node::Peer(Peer::Framework(i)) => self.start_framework(i)?,
        }
        let Some(life) = self.life(node) else { return Ok(()) };
        let phase = self.rng.below(TICK_US);
        self.after(phase, Happening::Tick(node, life));
        if let Node::Peer(peer) = node {
            self.after(0, Happening::Connect(peer, life));
        }
        Ok(())
    }

    /// A node crashes: what it had in memory is gone, its connections break, it starts again later.
    pub(crate) fn crash(&mut self, node: Node) {
        self.log.add(format_args!("{} {node:?} crashes", self.now.0));
        match node {
            Node::Master => self.master.crash(),
            Node::Peer(Peer::Agent(i)) => self.agents[i].crash(),
            Node::Peer(Peer::Framework(i)) => self.frameworks[i].crash(),
        }
        let lost = |c: &crate::network::Connection| c.up && (node == Node::Master || node == Node::Peer(c.peer));
        let broken: Vec<u64> = self.network.connections.iter().filter(|(_, c)| lost(c)).map(|(id, _)| *id).collect();
        broken.into_iter().for_each(|conn| self.break_connection(conn));
        let us = self.rng.between(1_000, 2_000_000);
        self.after(us, Happening::Start(node));
    }

    /// A connection breaks; both ends notice at some time.
    pub(crate) fn break_connection(&mut self, conn: u64) {
        if let Some(connection) = self.network.connections.get_mut(&conn) {
            connection.up = false;
            let (master, peer) = (self.rng.below(1_500_000), self.rng.below(1_500_000));
            self.after(master, Happening::MasterNotices(conn));
            self.after(peer, Happening::PeerNotices(conn));
        }
    }

    fn fault(&mut self) -> Result<(), String> {
        if self.calm {
            return Ok(());
        }
        let us = self.rng.between(5_000, 400_000);
        self.after(us, Happening::Fault);
        self.faults += 1;
        match self.rng.below(100) {
            0..=44 => {
                if let Some(conn) = self.network.any_up(&mut self.rng) {
                    self.break_connection(conn);
                }
            }
            45..=52 => self.crash(Node::Master),
            53..=66 => {
                let i = self.rng.index(self.agents.len());
                self.crash(Node::Peer(Peer::Agent(i)));
            }
            67..=80 => {
                let i = self.rng.index(self.frameworks.len());
                self.crash(Node::Peer(Peer::Framework(i)));
            }
            81..=95 => {
                let i = self.rng.index(self.agents.len());
                return self.kill_executor(i);
            }
            _ => return self.remove_agent(),
        }
        Ok(())
    }

    /// Sends something to the master, if the connection still carries anything.
    pub(crate) fn say_to_master(&mut self, conn: u64, message: ToMaster) {
        if let Some(at) = self.network.arrival(conn, true, self.now, &mut self.rng) {
            self.at(at, Happening::ToMaster(conn, message));
        }
    }

    /// Sends something to a peer, if the connection still carries anything.
    pub(crate) fn say_to_peer(&mut self, conn: u64, message: ToPeer) {
        if let Some(at) = self.network.arrival(conn, false, self.now, &mut self.rng) {
            self.at(at, Happening::ToPeer(conn, message));
        }
    }
}
