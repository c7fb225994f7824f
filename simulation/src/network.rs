//! The network: connections that keep their order, take their time, break, and lose what is in flight.
//!
//! The two ends of a broken connection notice at different times, as with TCP: meanwhile each of them says things that
//! nobody hears.

use crate::rng::Rng;
use crate::world::Peer;
use smalti_master_core::AgentMessage;
use smalti_types::protocol::{Call, FrameworkEvent, Registration, Subscription};
use smalti_types::{StatusUpdate, Time};
use std::collections::BTreeMap;

/// What a peer says to the master.
#[derive(Debug)]
pub(crate) enum ToMaster {
    Register(Registration),
    Updates(Vec<StatusUpdate>),
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

/// One connection of a peer to the master.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) peer: Peer,
    /// Whether anything still gets through.
    pub(crate) up: bool,
    last_to_master: Time,
    last_to_peer: Time,
}

/// All connections that somebody still knows of.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) connections: BTreeMap<u64, Connection>,
    opened: u64,
}

impl Network {
    pub(crate) fn open(&mut self, peer: Peer, now: Time) -> u64 {
        self.opened += 1;
        self.connections.insert(self.opened, Connection { peer, up: true, last_to_master: now, last_to_peer: now });
        self.opened
    }

    pub(crate) fn is_up(&self, conn: u64) -> bool {
        self.connections.get(&conn).is_some_and(|c| c.up)
    }

    /// When something said now arrives, if nothing breaks: after everything that was said before.
    pub(crate) fn arrival(&mut self, conn: u64, to_master: bool, now: Time, rng: &mut Rng) -> Option<Time> {
        let connection = self.connections.get_mut(&conn).filter(|c| c.up)?;
        let delay = if rng.chance(3) { rng.between(5_000, 150_000) } else { rng.between(30, 600) };
        let last = if to_master { &mut connection.last_to_master } else { &mut connection.last_to_peer };
        *last = Time(now.0 + delay).max(*last);
        Some(*last)
    }

    /// A connection that works, by chance.
    pub(crate) fn any_up(&self, rng: &mut Rng) -> Option<u64> {
        let up: Vec<u64> = self.connections.iter().filter(|(_, c)| c.up).map(|(id, _)| *id).collect();
        (!up.is_empty()).then(|| up[rng.index(up.len())])
    }
}
