//! What breaks: processes, machines, connections, the network between them, executors, full disks; an operator who removes an agent, and
//! one who starts a second scheduler beside the first.
//!
//! Owns when and what. Every crash leaves what the design says that it leaves: see `disk` for the two kinds.

use crate::network::Way;
use crate::rng::Rng;
use crate::world::{Happening, Node, Peer, World};

/// An end that hears nothing for about this long takes its connection for lost, in microseconds.
const SILENCE_US: (u64, u64) = (2_000_000, 5_000_000);
/// Of so many commits with something to keep, one is where the process crashes: before the write, or within it.
const WRITES_PER_CRASH: u64 = 500;
/// Of so many commits, one is followed by a crash after some of its messages have left.
const SENDS_PER_CRASH: u64 = 700;

/// A process crashed while it wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteCrash {
    /// Nothing was written.
    Before,
    /// The write was cut short.
    Within,
}

/// Decides whether a process crashes while it makes `records` records durable.
pub(crate) fn write_crash(records: usize, calm: bool, rng: &mut Rng) -> Result<(), WriteCrash> {
    if calm || records == 0 || rng.below(WRITES_PER_CRASH) > 0 {
        return Ok(());
    }
    Err(if rng.chance(50) { WriteCrash::Before } else { WriteCrash::Within })
}

impl World {
    /// Decides whether a process crashes after its records are durable and before all of its messages have left: how many have.
    pub(crate) fn send_crash(&mut self, messages: usize) -> Option<usize> {
        if self.calm || messages == 0 || self.rng.below(SENDS_PER_CRASH) > 0 {
            return None;
        }
        self.faults += 1;
        Some(self.rng.index(messages))
    }

    pub(crate) fn fault(&mut self) -> Result<(), String> {
        if self.calm {
            return Ok(());
        }
        let us = self.rng.between(5_000, 400_000);
        self.after(us, Happening::Fault);
        self.faults += 1;
        let agent = Peer::Agent(self.rng.index(self.agents.len()));
        let framework = Peer::Framework(self.rng.index(self.frameworks.len()));
        match self.rng.below(110) {
            0..=29 => {
                if let Some(conn) = self.network.any_up(&mut self.rng) {
                    self.break_connection(conn);
                }
            }
            30..=36 => self.crash(Node::Master, false),
            37..=38 => self.crash(Node::Master, true),
            39..=50 => self.crash(Node::Peer(agent), false),
            51..=54 => self.crash(Node::Peer(agent), true),
            55..=66 => self.crash(Node::Peer(framework), false),
            67..=68 => self.crash(Node::Peer(framework), true),
            69..=82 => {
                let Peer::Agent(i) = agent else { return Ok(()) };
                return self.kill_any_executor(i);
            }
            83..=96 => self.partition(agent, framework),
            97..=102 => {
                let node = [Node::Master, Node::Peer(agent), Node::Peer(agent), Node::Peer(framework)][self.rng.index(4)];
                self.disk_fills(node);
            }
            103..=106 => {
                let Peer::Framework(i) = framework else { return Ok(()) };
                self.take_over(i);
            }
            _ => return self.remove_agent(),
        }
        Ok(())
    }

    /// A node's disk is full for a while.
    fn disk_fills(&mut self, node: Node) {
        let us = if self.rng.chance(60) { self.rng.between(50_000, 1_500_000) } else { self.rng.between(1_500_000, 12_000_000) };
        let until = smalti_types::Time(self.now.0 + us);
        self.note(format_args!("the disk of {node:?} is full until {}", until.0));
        let machine = self.machine(node);
        machine.full_until = machine.full_until.max(until);
        machine.disk.borrow_mut().full = true;
        self.at(until, Happening::Room(node));
    }

    /// Somebody may have made room.
    pub(crate) fn room(&mut self, node: Node) -> Result<(), String> {
        let now = self.now;
        let machine = self.machine(node);
        if machine.full_until <= now {
            machine.disk.borrow_mut().full = false;
        }
        Ok(())
    }

    /// A node crashes: what it had in memory is gone, its connections break, it starts again later.
    pub(crate) fn crash(&mut self, node: Node, machine: bool) {
        if self.life(node).is_none() && !machine {
            return;
        }
        self.note(format_args!("{node:?} crashes{}", if machine { " with its machine" } else { "" }));
        match node {
            Node::Master => self.master.crash(),
            Node::Peer(Peer::Agent(i)) => self.agents[i].crash(),
            Node::Peer(Peer::Framework(i)) => self.frameworks[i].crash(),
        }
        let end = if node == Node::Master { Way::ToMaster } else { Way::ToPeer };
        let conns = match node {
            Node::Master => self.network.connections.keys().copied().collect(),
            Node::Peer(peer) => self.network.of(peer),
        };
        for conn in conns {
            self.network.close(conn, end);
            // A dead process's kernel says so; a dead machine says nothing.
            self.break_off(conn, machine);
        }
        let us = if machine {
            self.power_fails(node);
            self.rng.between(500_000, 6_000_000)
        } else {
            self.rng.between(1_000, 2_000_000)
        };
        self.after(us, Happening::Start(node));
    }

    fn power_fails(&mut self, node: Node) {
        match node {
            Node::Master => self.master.machine.power_fails(self.now, &mut self.rng),
            Node::Peer(Peer::Agent(i)) => self.agent_power_fails(i),
            Node::Peer(Peer::Framework(i)) => self.frameworks[i].machine.power_fails(self.now, &mut self.rng),
        }
    }

    /// A connection breaks; both ends notice at some time.
    pub(crate) fn break_connection(&mut self, conn: u64) {
        let silent = self.rng.chance(20);
        self.break_off(conn, silent);
    }

    fn break_off(&mut self, conn: u64, silent: bool) {
        let Some((master, peer)) = self.network.break_off(conn, self.now, &mut self.rng) else { return };
        let (low, high) = if silent { SILENCE_US } else { (0, 1_500_000) };
        let (m, p) = (self.rng.between(low, high), self.rng.between(low, high));
        self.at(smalti_types::Time(master.0 + m), Happening::MasterNotices(conn));
        self.at(smalti_types::Time(peer.0 + p), Happening::PeerNotices(conn));
    }

    /// Some peers are cut off from the master for a while, both ways or one way.
    fn partition(&mut self, agent: Peer, framework: Peer) {
        let mut peers = match self.rng.below(4) {
            0 => vec![framework],
            1 => vec![agent, framework],
            _ => vec![agent],
        };
        if self.rng.chance(15) {
            let more = self.rng.index(self.agents.len().min(100));
            peers.extend((0..=more).map(Peer::Agent));
        }
        let (to_master, to_peer) = [(true, true), (true, true), (true, false), (false, true)][self.rng.index(4)];
        self.network.partitions += 1;
        let partition = self.network.partitions;
        self.note(format_args!("partition {partition}: {peers:?}, to master {to_master}, to peer {to_peer}"));
        for peer in peers {
            if self.network.is_cut(peer) {
                continue;
            }
            self.network.cut(peer, to_master, to_peer, partition);
            for conn in self.network.of(peer) {
                for end in [Way::ToMaster, Way::ToPeer] {
                    let us = self.rng.between(SILENCE_US.0, SILENCE_US.1);
                    self.after(us, Happening::Silence(conn, end, partition));
                }
            }
        }
        let us = if self.rng.chance(50) { self.rng.between(20_000, 2_000_000) } else { self.rng.between(2_000_000, 15_000_000) };
        self.after(us, Happening::Heals(partition));
    }

    /// An end has heard nothing for too long, if the partition still holds.
    pub(crate) fn silence(&mut self, conn: u64, end: Way, partition: u64) -> Result<(), String> {
        let Some(peer) = self.network.connections.get(&conn).map(|c| c.peer) else { return Ok(()) };
        if self.network.cut_by(peer) != Some(partition) {
            return Ok(());
        }
        // What it has said may still arrive; what it is told does not reach it any more.
        match end {
            Way::ToMaster => self.master_notices(conn),
            Way::ToPeer => self.peer_notices(conn),
        }
    }

    pub(crate) fn heal(&mut self, partition: u64) -> Result<(), String> {
        let (released, concerned) = self.network.heal(partition);
        for (conn, packet) in released {
            if self.network.connections.contains_key(&conn) {
                self.note(format_args!("on connection {conn} arrives at last {packet:?}"));
                self.heard(conn, packet)?;
            }
        }
        for conn in concerned {
            // One end may have given up: now the other learns of it.
            if self.network.connections.get(&conn).is_some_and(|c| !c.works()) {
                self.break_off(conn, false);
            }
        }
        Ok(())
    }

    /// The last fault is over: what is cut off is joined again, and there is room on every disk.
    pub(crate) fn be_calm(&mut self) -> Result<(), String> {
        self.calm = true;
        self.note(format_args!("calm"));
        for node in std::iter::once(Node::Master).chain(self.peers().into_iter().map(Node::Peer)) {
            self.machine(node).disk.borrow_mut().full = false;
        }
        (1..=self.network.partitions).try_for_each(|partition| self.heal(partition))
    }
}
