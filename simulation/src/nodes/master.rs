//! The master's process: batches, and the checks at its door.

use crate::network::{ToMaster, ToPeer};
use crate::world::{Happening, Node, World};
use smalti_master_core::{AgentMessage, Config, Conn, Effects, Event, Master, Message};
use smalti_types::protocol::{AgentCommand, Call};
use smalti_types::{DurationMs, FrameworkId, MasterEpoch, OfferId};
use std::convert::Infallible;

/// The master, or the place where it was.
#[derive(Debug, Default)]
pub(crate) struct MasterNode {
    pub(crate) core: Option<Master>,
    pub(crate) life: u64,
    epoch: u64,
    frameworks: u64,
    /// Decided in this batch, not yet committed.
    batch: Effects,
    batch_is_open: bool,
}

impl MasterNode {
    pub(crate) fn crash(&mut self) {
        self.core = None;
        self.batch = Effects::default();
        self.batch_is_open = false;
    }
}

/// Shorter time-outs than an operator would choose: a run is short, too.
fn config() -> Config {
    Config { agent_timeout: DurationMs(8_000), offer_timeout: DurationMs(4_000), ..Config::default() }
}

impl World {
    pub(crate) fn start_master(&mut self) {
        self.master.life += 1;
        // As the real one: microseconds since some beginning, and never the same twice.
        self.master.epoch = self.now.0.max(self.master.epoch + 1);
        self.master.core = Some(Master::new(config(), MasterEpoch(self.master.epoch), self.now));
    }

    pub(crate) fn master_hears(&mut self, conn: u64, message: ToMaster) -> Result<(), String> {
        let conn = Conn(conn);
        let event = match message {
            ToMaster::Register(registration) => Event::AgentRegistered { conn, registration },
            ToMaster::Updates(updates) => Event::AgentUpdates { conn, updates },
            ToMaster::Subscribe(subscription) => {
                self.master.frameworks += 1;
                let fresh = format!("F{:x}-{}", self.master.epoch, self.master.frameworks);
                let fresh = FrameworkId::new(fresh).map_err(|e| e.to_string())?;
                Event::FrameworkSubscribed { conn, subscription, fresh }
            }
            ToMaster::Call(call) => Event::FrameworkCall { conn, call },
        };
        self.master_step(event)
    }

    pub(crate) fn master_notices(&mut self, conn: u64) -> Result<(), String> {
        let Some(peer) = self.network.connections.get(&conn).map(|c| c.peer) else { return Ok(()) };
        let conn = Conn(conn);
        match peer {
            crate::world::Peer::Agent(_) => self.master_step(Event::AgentDisconnected { conn }),
            crate::world::Peer::Framework(_) => self.master_step(Event::FrameworkDisconnected { conn }),
        }
    }

    pub(crate) fn master_tick(&mut self) -> Result<(), String> {
        self.master_step(Event::Tick)
    }

    /// An operator removes an agent.
    pub(crate) fn remove_agent(&mut self) -> Result<(), String> {
        let i = self.rng.index(self.agents.len());
        let agent = self.agents[i].id();
        self.log.add(format_args!("{} agent {agent} is removed", self.now.0));
        self.master_step(Event::AgentRemoved { agent, reason: "the operator wants it".into() })
    }

    fn master_step(&mut self, event: Event) -> Result<(), String> {
        let Some(core) = &mut self.master.core else { return Ok(()) };
        let accepted = match &event {
            Event::FrameworkCall { call: Call::Accept { offers, .. }, .. } => offers.clone(),
            _ => Vec::new(),
        };
        let effects = core.step(self.now, event);
        self.check_master(&accepted, &effects)?;
        self.master.batch.merge(effects);
        if !self.master.batch_is_open {
            self.master.batch_is_open = true;
            // The inbox is drained now, or a little later with what has come in by then.
            let us = if self.rng.chance(70) { 0 } else { self.rng.below(300) };
            self.after(us, Happening::BatchEnd(self.master.life));
        }
        Ok(())
    }

    pub(crate) fn batch_end(&mut self, life: u64) -> Result<(), String> {
        if self.life(Node::Master) != Some(life) {
            return Ok(());
        }
        let Some(core) = &mut self.master.core else { return Ok(()) };
        let effects = core.step(self.now, Event::BatchEnd);
        self.check_master(&[], &effects)?;
        self.master.batch.merge(effects);
        self.master.batch_is_open = false;
        let batch = std::mem::take(&mut self.master.batch);
        // Nothing is read back yet: the master's memory of the last life comes with recovery.
        let messages = batch.commit(|_records| Ok::<_, Infallible>(())).unwrap_or_else(|never| match never {});
        for message in messages {
            match message {
                Message::ToAgent { conn, message } => {
                    if let AgentMessage::Refused(reason) = &message {
                        return Err(format!("the master refused an agent: {reason}"));
                    }
                    self.say_to_peer(conn.0, ToPeer::Agent(message));
                }
                Message::ToFramework { conn, event } => self.say_to_peer(conn.0, ToPeer::Framework(event)),
                Message::Close { conn, .. } => self.say_to_peer(conn.0, ToPeer::Closed),
            }
        }
        Ok(())
    }

    fn check_master(&mut self, accepted: &[OfferId], effects: &Effects) -> Result<(), String> {
        let Some(core) = &self.master.core else { return Ok(()) };
        core.check_invariants().map_err(|e| format!("master: {e}"))?;
        for view in core.agent_views() {
            let sum = view.used.checked_add(&view.offered).and_then(|s| s.checked_add(&view.free)).map_err(|e| e.to_string())?;
            if sum != view.info.total {
                return Err(format!("agent {}: used, offered and free are {sum}, its total is {}", view.info.id, view.info.total));
            }
        }
        if accepted.is_empty() {
            return Ok(());
        }
        let messages = effects.clone().commit(|_| Ok::<_, Infallible>(())).unwrap_or_else(|never| match never {});
        let launches = |m: &Message| {
            let Message::ToAgent { message: AgentMessage::Command(c), .. } = m else { return false };
            matches!(c, AgentCommand::Launch { .. } | AgentCommand::LaunchArray { .. })
        };
        if messages.iter().any(launches) { self.checks.consume(accepted) } else { Ok(()) }
    }
}
