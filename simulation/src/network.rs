//! The network: connections that keep their order, take their time, break, are cut off for a while, and lose what is in flight.
//!
//! The two ends of a broken connection notice at different times, as with TCP: meanwhile each of them says things that nobody hears,
//! and what was under way may still arrive, after a new connection of the same peer has been heard.
//! Owns what happens to a message; who connects when, and what an end does about a loss, is the nodes'.

use crate::rng::Rng;
use crate::world::Peer;
use smalti_master_core::AgentMessage;
use smalti_types::protocol::{Call, FrameworkEvent, Registration, Subscription};
use smalti_types::{BootTime, StatusUpdate, Time};
use std::collections::{BTreeMap, VecDeque};

/// What a peer says to the master.
#[derive(Debug)]
pub(crate) enum ToMaster {
    Register(Registration),
    Updates(Vec<StatusUpdate>),
    /// A heartbeat of an agent that has exclusive tasks.
    Lease(BootTime),
    Subscribe(Subscription),
    Call(Call),
}

/// What the master says to a peer.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "each is moved once into the queue and once out of it")]
pub(crate) enum ToPeer {
    Agent(AgentMessage),
    Framework(FrameworkEvent),
    /// The master closes the connection.
    Closed,
}

/// A message on its way.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "each is moved once into the queue and once out of it")]
pub(crate) enum Packet {
    ToMaster(ToMaster),
    ToPeer(ToPeer),
}

impl Packet {
    fn way(&self) -> Way {
        match self {
            Self::ToMaster(_) => Way::ToMaster,
            Self::ToPeer(_) => Way::ToPeer,
        }
    }
}

/// A direction; also the end of a connection that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    ToMaster,
    ToPeer,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    /// When the last message arrives, as far as that is known.
    last: Time,
    sent: u64,
    arrived: u64,
    /// Messages beyond this never arrive. `None`: it works.
    lost_after: Option<u64>,
    /// The end that it leads to has closed.
    closed: bool,
    /// Arrived where the way is cut, in order.
    held: VecDeque<(u64, Packet)>,
}

/// One connection of a peer to the master.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) peer: Peer,
    to_master: Pipe,
    to_peer: Pipe,
}

impl Connection {
    fn pipe(&mut self, way: Way) -> &mut Pipe {
        match way {
            Way::ToMaster => &mut self.to_master,
            Way::ToPeer => &mut self.to_peer,
        }
    }

    /// Whether both ends have it and everything gets through.
    pub(crate) fn works(&self) -> bool {
        [&self.to_master, &self.to_peer].iter().all(|p| p.lost_after.is_none() && !p.closed)
    }
}

/// Which ways of a peer are cut, by which partition.
#[derive(Debug, Clone, Copy, Default)]
struct Cut {
    to_master: Option<u64>,
    to_peer: Option<u64>,
}

/// All connections that somebody still knows of, and who is cut off.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) connections: BTreeMap<u64, Connection>,
    by_peer: BTreeMap<Peer, Vec<u64>>,
    opened: u64,
    cuts: BTreeMap<Peer, Cut>,
    pub(crate) partitions: u64,
}

impl Network {
    /// A new connection; `None` while the peer is cut off.
    pub(crate) fn open(&mut self, peer: Peer, now: Time) -> Option<u64> {
        if self.cuts.contains_key(&peer) {
            return None;
        }
        self.opened += 1;
        let pipe = || Pipe { last: now, ..Pipe::default() };
        self.connections.insert(self.opened, Connection { peer, to_master: pipe(), to_peer: pipe() });
        self.by_peer.entry(peer).or_default().push(self.opened);
        Some(self.opened)
    }

    /// Something is said. Gives the number and the time of its arrival, unless it is lost at once.
    pub(crate) fn send(&mut self, conn: u64, way: Way, now: Time, rng: &mut Rng) -> Option<(u64, Time)> {
        let pipe = self.connections.get_mut(&conn)?.pipe(way);
        pipe.sent += 1;
        if pipe.closed || pipe.lost_after.is_some_and(|n| pipe.sent > n) {
            return None;
        }
        let delay = if rng.chance(3) { rng.between(5_000, 150_000) } else { rng.between(30, 600) };
        pipe.last = Time(now.0 + delay).max(pipe.last);
        Some((pipe.sent, pipe.last))
    }

    /// What is said next on this way arrives no earlier than that.
    pub(crate) fn hold_up(&mut self, conn: u64, way: Way, until: Time) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            let pipe = connection.pipe(way);
            pipe.last = pipe.last.max(until);
        }
    }

    /// A message has come to the end of its way: it is heard, lost, or held where the way is cut.
    pub(crate) fn arrive(&mut self, conn: u64, number: u64, packet: Packet) -> Option<Packet> {
        let connection = self.connections.get_mut(&conn)?;
        let way = packet.way();
        let cut = self.cuts.get(&connection.peer).copied().unwrap_or_default();
        let is_cut = match way {
            Way::ToMaster => cut.to_master,
            Way::ToPeer => cut.to_peer,
        };
        let pipe = connection.pipe(way);
        if pipe.closed || pipe.lost_after.is_some_and(|n| number > n) {
            return None;
        }
        if is_cut.is_some() {
            pipe.held.push_back((number, packet));
            return None;
        }
        pipe.arrived = number;
        Some(packet)
    }

    /// The connection breaks. Of what is on its way, some first messages still arrive. Gives when each end may notice at the earliest.
    pub(crate) fn break_off(&mut self, conn: u64, now: Time, rng: &mut Rng) -> Option<(Time, Time)> {
        let connection = self.connections.get_mut(&conn)?;
        for way in [Way::ToMaster, Way::ToPeer] {
            let pipe = connection.pipe(way);
            let under_way = pipe.sent.saturating_sub(pipe.arrived);
            let kept = if rng.chance(50) { 0 } else { rng.below(under_way + 1) };
            pipe.lost_after = Some(pipe.lost_after.unwrap_or(u64::MAX).min(pipe.arrived + kept));
        }
        Some((connection.to_master.last.max(now), connection.to_peer.last.max(now)))
    }

    /// An end closes: it hears nothing more, and says nothing more. False when it had closed before.
    pub(crate) fn close(&mut self, conn: u64, end: Way) -> bool {
        let Some(connection) = self.connections.get_mut(&conn) else { return false };
        let pipe = connection.pipe(end);
        if std::mem::replace(&mut pipe.closed, true) {
            return false;
        }
        pipe.held.clear();
        if connection.to_master.closed && connection.to_peer.closed {
            let peer = connection.peer;
            self.connections.remove(&conn);
            if let Some(list) = self.by_peer.get_mut(&peer) {
                list.retain(|c| *c != conn);
            }
        }
        true
    }

    /// Connections of a peer that somebody still knows of.
    pub(crate) fn of(&self, peer: Peer) -> Vec<u64> {
        self.by_peer.get(&peer).cloned().unwrap_or_default()
    }

    pub(crate) fn is_cut(&self, peer: Peer) -> bool {
        self.cuts.contains_key(&peer)
    }

    /// The partition that cuts this peer off, if any.
    pub(crate) fn cut_by(&self, peer: Peer) -> Option<u64> {
        self.cuts.get(&peer).and_then(|c| c.to_master.or(c.to_peer))
    }

    /// Cuts ways of a peer that is not cut off yet.
    pub(crate) fn cut(&mut self, peer: Peer, to_master: bool, to_peer: bool, partition: u64) {
        let cut = Cut { to_master: to_master.then_some(partition), to_peer: to_peer.then_some(partition) };
        self.cuts.entry(peer).or_insert(cut);
    }

    /// Ends a partition. Gives what was held and is heard now, in order, and the connections that it held up.
    pub(crate) fn heal(&mut self, partition: u64) -> (Vec<(u64, Packet)>, Vec<u64>) {
        let is_over = |cut: &Cut| cut.to_master == Some(partition) || cut.to_peer == Some(partition);
        let peers: Vec<Peer> = self.cuts.iter().filter(|(_, cut)| is_over(cut)).map(|(peer, _)| *peer).collect();
        let (mut released, mut concerned) = (Vec::new(), Vec::new());
        for peer in peers {
            self.cuts.remove(&peer);
            for conn in self.of(peer) {
                concerned.push(conn);
                let Some(connection) = self.connections.get_mut(&conn) else { continue };
                for way in [Way::ToMaster, Way::ToPeer] {
                    let pipe = connection.pipe(way);
                    for (number, packet) in std::mem::take(&mut pipe.held) {
                        if pipe.lost_after.is_none_or(|n| number <= n) {
                            pipe.arrived = number;
                            released.push((conn, packet));
                        }
                    }
                }
            }
        }
        (released, concerned)
    }

    /// A connection that works, by chance.
    pub(crate) fn any_up(&self, rng: &mut Rng) -> Option<u64> {
        let up: Vec<u64> = self.connections.iter().filter(|(_, c)| c.works()).map(|(id, _)| *id).collect();
        (!up.is_empty()).then(|| up[rng.index(up.len())])
    }
}
