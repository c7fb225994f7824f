//! The processes: each a core, its connection, and the little that its shell would add.

mod agent;
mod framework;
mod master;

pub(crate) use agent::{AgentNode, bundle};
pub(crate) use framework::FrameworkNode;
pub(crate) use master::{LEASE, MasterNode};

use crate::network::{ToMaster, ToPeer, Way};
use crate::world::{Happening, Node, Peer, World};

impl World {
    /// A peer without a connection tries to get one.
    pub(crate) fn connect(&mut self, peer: Peer, life: u64) -> Result<(), String> {
        if self.life(Node::Peer(peer)) != Some(life) || self.connection_of(peer).is_some() {
            return Ok(());
        }
        let is_stalled = matches!(peer, Peer::Agent(i) if self.agents[i].is_stalled());
        let conn = (self.master.core.is_some() && !is_stalled).then(|| self.network.open(peer, self.now)).flatten();
        let Some(conn) = conn else {
            let us = self.rng.between(20_000, 400_000);
            self.after(us, Happening::Connect(peer, life));
            return Ok(());
        };
        match peer {
            Peer::Agent(i) => {
                let registration = self.agents[i].connected(conn, self.now);
                for update in &registration.unacknowledged {
                    self.checks.say(update)?;
                }
                self.say_to_master(conn, ToMaster::Register(registration));
                Ok(())
            }
            Peer::Framework(i) => {
                self.frameworks[i].conn = Some(conn);
                self.client_step(i, smalti_framework_sdk_core::Event::Connected)
            }
        }
    }

    fn connection_of(&self, peer: Peer) -> Option<u64> {
        match peer {
            Peer::Agent(i) => self.agents[i].conn,
            Peer::Framework(i) => self.frameworks[i].conn,
        }
    }

    /// A peer takes its connection for lost.
    pub(crate) fn peer_notices(&mut self, conn: u64) -> Result<(), String> {
        let Some(peer) = self.network.connections.get(&conn).map(|c| c.peer) else { return Ok(()) };
        self.network.close(conn, Way::ToPeer);
        if self.connection_of(peer) != Some(conn) {
            self.fenced_ends(peer, conn);
            return Ok(());
        }
        let Some(life) = self.life(Node::Peer(peer)) else { return Ok(()) };
        let us = self.rng.between(5_000, 500_000);
        self.after(us, Happening::Connect(peer, life));
        match peer {
            Peer::Agent(i) => {
                self.agents[i].conn = None;
                self.agent_event(i, life, smalti_agent_core::Event::MasterDisconnected)
            }
            Peer::Framework(i) => {
                self.frameworks[i].conn = None;
                self.client_step(i, smalti_framework_sdk_core::Event::Disconnected)
            }
        }
    }

    pub(crate) fn peer_hears(&mut self, conn: u64, message: ToPeer) -> Result<(), String> {
        let Some(peer) = self.network.connections.get(&conn).map(|c| c.peer) else { return Ok(()) };
        if self.connection_of(peer) != Some(conn) {
            return self.fenced_hears(peer, conn, message);
        }
        match (peer, message) {
            (_, ToPeer::Closed) => {
                self.network.close(conn, Way::ToMaster);
                self.peer_notices(conn)
            }
            (Peer::Agent(i), ToPeer::Agent(message)) => self.agent_hears(i, message),
            (Peer::Framework(i), ToPeer::Framework(event)) => self.client_step(i, smalti_framework_sdk_core::Event::FromMaster(event)),
            (peer, message) => Err(format!("{peer:?} was told {message:?}")),
        }
    }
}
