//! The master's process: batches, its registry, and the checks at its door.

mod registry;

use crate::faults::{WriteCrash, write_crash};
use crate::machine::Machine;
use crate::network::{ToMaster, ToPeer, Way};
use crate::rng::Rng;
use crate::world::{Happening, Node, Peer, World};
use registry::Registry;
use smalti_master_core::{AgentMessage, Config, Conn, Effects, Event, Master, Message};
use smalti_types::protocol::{AgentCommand, Call};
use smalti_types::{DurationMs, FrameworkId, MasterEpoch, OfferId, TaskKey};

/// Agents up to which everything is checked after every event; of more, it is checked as many times less often as there are more.
const AGENTS_AT_FULL_CHECK: u64 = 10;

/// For how long an agent may run exclusive tasks without another word of the master.
pub(crate) const LEASE: DurationMs = DurationMs(3_000);

/// The master, or the place where it was.
#[derive(Debug)]
pub(crate) struct MasterNode {
    pub(crate) machine: Machine,
    pub(crate) core: Option<Master>,
    pub(crate) life: u64,
    registry: Registry,
    frameworks: u64,
    /// Decided in this batch, not yet committed.
    batch: Effects,
    batch_is_open: bool,
    /// Everything is checked once in so many events.
    check_every: u64,
    events: u64,
}

impl MasterNode {
    pub(crate) fn new(agents: usize, rng: &mut Rng) -> Self {
        Self {
            machine: Machine::new(rng),
            core: None,
            life: 0,
            registry: Registry::default(),
            frameworks: 0,
            batch: Effects::default(),
            batch_is_open: false,
            check_every: (agents as u64 / AGENTS_AT_FULL_CHECK).max(1),
            events: 0,
        }
    }

    pub(crate) fn crash(&mut self) {
        self.core = None;
        self.batch = Effects::default();
        self.batch_is_open = false;
    }
}

/// Shorter time-outs than an operator would choose: a run is short, too.
fn config() -> Config {
    Config {
        agent_timeout: DurationMs(8_000),
        offer_timeout: DurationMs(4_000),
        lease: LEASE,
        lease_margin: DurationMs(200),
        reconnect_grace: DurationMs(3_000),
        resend_window: 20,
        pending_per_attempt: 8,
        ..Config::default()
    }
}

impl World {
    pub(crate) fn start_master(&mut self) -> Result<(), String> {
        self.master.life += 1;
        let now = self.master.machine.clock.wall(self.now);
        // As the real one: microseconds since some beginning, and never the same twice.
        let epoch = now.0.max(self.master.registry.epoch + 1);
        self.master.registry.epoch = epoch;
        let stored = self.master.registry.load().map_err(|e| format!("the master's registry: {e}"))?;
        self.master.frameworks = 0;
        self.master.core = Some(Master::recover(config(), MasterEpoch(epoch), now, stored));
        Ok(())
    }

    pub(crate) fn master_hears(&mut self, conn: u64, message: ToMaster) -> Result<(), String> {
        let conn = Conn(conn);
        let event = match message {
            ToMaster::Register(registration) => Event::AgentRegistered { conn, registration },
            ToMaster::Updates(updates) => Event::AgentUpdates { conn, updates },
            ToMaster::Lease(asked) => Event::AgentLease { conn, asked },
            ToMaster::Subscribe(subscription) => {
                self.master.frameworks += 1;
                let fresh = format!("F{:x}-{}", self.master.registry.epoch, self.master.frameworks);
                let fresh = FrameworkId::new(fresh).map_err(|e| e.to_string())?;
                Event::FrameworkSubscribed { conn, subscription, fresh }
            }
            ToMaster::Call(call) => Event::FrameworkCall { conn, call },
        };
        self.master_step(event)
    }

    pub(crate) fn master_notices(&mut self, conn: u64) -> Result<(), String> {
        let Some(peer) = self.network.connections.get(&conn).map(|c| c.peer) else { return Ok(()) };
        if !self.network.close(conn, Way::ToMaster) {
            return Ok(());
        }
        let conn = Conn(conn);
        match peer {
            Peer::Agent(_) => self.master_step(Event::AgentDisconnected { conn }),
            Peer::Framework(_) => self.master_step(Event::FrameworkDisconnected { conn }),
        }
    }

    pub(crate) fn master_tick(&mut self) -> Result<(), String> {
        self.master_step(Event::Tick)?;
        let now = self.master.machine.clock.wall(self.now);
        match self.master.core.as_ref().and_then(Master::first_refusal_end) {
            Some(end) if end < now => Err(format!("a refusal ended at {} and still holds at {}", end.0, now.0)),
            _ => Ok(()),
        }
    }

    /// An operator removes an agent.
    pub(crate) fn remove_agent(&mut self) -> Result<(), String> {
        let i = self.rng.index(self.agents.len());
        let agent = self.agents[i].id();
        self.note(format_args!("agent {agent} is removed"));
        self.master_step(Event::AgentRemoved { agent, reason: "the operator wants it".into() })
    }

    fn master_step(&mut self, event: Event) -> Result<(), String> {
        let now = self.master.machine.clock.wall(self.now);
        let Some(core) = &mut self.master.core else { return Ok(()) };
        let accepted = match &event {
            Event::FrameworkCall { call: Call::Accept { offers, .. }, .. } => offers.clone(),
            _ => Vec::new(),
        };
        let effects = core.step(now, event);
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
        let now = self.master.machine.clock.wall(self.now);
        let Some(core) = &mut self.master.core else { return Ok(()) };
        let effects = core.step(now, Event::BatchEnd);
        self.check_master(&[], &effects)?;
        self.master.batch.merge(effects);
        self.master.batch_is_open = false;
        let batch = std::mem::take(&mut self.master.batch);
        // What cannot be kept is told to nobody, and the process ends.
        if batch.has_records() && self.master.machine.disk.borrow().full {
            self.note(format_args!("the master cannot write its registry"));
            self.crash(Node::Master, false);
            return Ok(());
        }
        // One transaction: it is kept as a whole or not at all.
        let persist = |records: Vec<smalti_master_core::Record>| {
            write_crash(records.len(), self.calm, &mut self.rng)?;
            self.master.registry.write(records);
            Ok::<_, WriteCrash>(())
        };
        let Ok(messages) = batch.commit(persist) else {
            self.faults += 1;
            self.crash(Node::Master, false);
            return Ok(());
        };
        let crash = self.send_crash(messages.len());
        for message in messages.into_iter().take(crash.unwrap_or(usize::MAX)) {
            self.master_says(message)?;
        }
        if crash.is_some() {
            self.crash(Node::Master, false);
        }
        Ok(())
    }

    fn master_says(&mut self, message: Message) -> Result<(), String> {
        match message {
            Message::ToAgent { message: AgentMessage::Refused(reason), .. } => Err(format!("the master refused an agent: {reason}")),
            Message::ToAgent { conn, message } => {
                match &message {
                    AgentMessage::Command(AgentCommand::Launch { framework, launch, .. }) => {
                        let key = TaskKey { framework: framework.clone(), task: launch.task.clone(), attempt: launch.attempt };
                        self.checks.accept(key);
                    }
                    AgentMessage::Command(AgentCommand::LaunchArray { framework, launch, .. }) => {
                        let key = TaskKey { framework: framework.clone(), task: launch.task.clone(), attempt: launch.attempt };
                        self.checks.accept(key);
                    }
                    _ => {}
                }
                self.say_to_peer(conn.0, ToPeer::Agent(message));
                Ok(())
            }
            Message::ToFramework { conn, event } => {
                self.say_to_peer(conn.0, ToPeer::Framework(event));
                Ok(())
            }
            Message::Close { conn, .. } => {
                self.say_to_peer(conn.0, ToPeer::Closed);
                // What has come in already is still heard.
                let us = if self.rng.chance(50) { 0 } else { self.rng.below(20_000) };
                self.after(us, Happening::MasterCloses(conn.0));
                Ok(())
            }
        }
    }

    fn check_master(&mut self, accepted: &[OfferId], effects: &Effects) -> Result<(), String> {
        let Some(core) = &self.master.core else { return Ok(()) };
        self.master.events += 1;
        if self.master.events.is_multiple_of(self.master.check_every) {
            core.check_invariants().map_err(|e| format!("master: {e}"))?;
        }
        if self.master.events.is_multiple_of(self.master.check_every * 8) {
            for view in core.agent_views() {
                let sum = view.used.checked_add(&view.offered).and_then(|s| s.checked_add(&view.free)).map_err(|e| e.to_string())?;
                if sum != view.info.total {
                    return Err(format!("agent {}: used, offered and free are {sum}, its total is {}", view.info.id, view.info.total));
                }
            }
        }
        if accepted.is_empty() {
            return Ok(());
        }
        let messages = effects.clone().commit(|_| Ok::<_, std::convert::Infallible>(())).unwrap_or_else(|never| match never {});
        let launches = |m: &Message| {
            let Message::ToAgent { message: AgentMessage::Command(c), .. } = m else { return false };
            matches!(c, AgentCommand::Launch { .. } | AgentCommand::LaunchArray { .. })
        };
        if messages.iter().any(launches) { self.checks.consume(accepted) } else { Ok(()) }
    }
}
