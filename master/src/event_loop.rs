//! The one task that owns the core. Drains its inbox in batches: steps every event, allocates once, commits the records
//! once, then gives every peer its frames. No timer lies between an event and its effect.

use crate::clock::Clock;
use crate::frames::{AgentFrame, FrameworkFrame};
use crate::outbound::Queue;
use crate::peers::Peers;
use crate::registry::{Registry, RegistryError};
use smalti_master_core::{Conn, Effects, Event, Master, Message};
use smalti_proto::convert::HEARTBEAT_INTERVAL_MS;
use smalti_proto::v1;
use smalti_types::protocol::{FrameworkEvent, Registration, Subscription};
use smalti_types::{AgentId, DurationMs, FrameworkId, TaskKey};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Inputs that wait for the loop; beyond it, readers of connections wait, and with them their peers.
const INBOX: usize = 4_096;
/// Inputs of one batch.
const BATCH: usize = 1_024;
/// How often time-outs are looked at.
const TICK: Duration = Duration::from_millis(100);

/// A question about the core's state.
type Question = Box<dyn FnOnce(&Master, &Peers) + Send>;

/// What reaches the loop.
pub(crate) enum Input {
    AgentArrived {
        conn: Conn,
        queue: Queue<AgentFrame>,
        registration: Registration,
    },
    FrameworkArrived {
        conn: Conn,
        queue: Queue<FrameworkFrame>,
        subscription: Subscription,
    },
    Event(Event),
    Gone(Conn),
    /// A framework's call could not be read.
    Refuse {
        conn: Conn,
        call: &'static str,
        message: String,
    },
    /// An agent's counters, as of its heartbeat.
    Counters {
        conn: Conn,
        counters: BTreeMap<String, u64>,
    },
    /// What an agent says about its executors.
    Executors {
        conn: Conn,
        reports: v1::ExecutorReports,
    },
    Ask(Question),
    Read {
        request: v1::ReadRequest,
        task: TaskKey,
        agent: Option<AgentId>,
        sent: oneshot::Sender<Result<AgentId, NoAgent>>,
    },
}

/// Why a read could not be passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAgent {
    #[error("the master does not know where task {0} is; name its agent")]
    UnknownTask(TaskKey),
    #[error("there is no agent {0}")]
    UnknownAgent(AgentId),
    #[error("agent {0} is not connected")]
    NotConnected(AgentId),
}

/// The loop has stopped: the master shuts down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the master is shutting down")]
pub(crate) struct Stopped;

impl From<Stopped> for tonic::Status {
    fn from(stopped: Stopped) -> Self {
        Self::unavailable(stopped.to_string())
    }
}

/// How the services reach the loop.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    inbox: mpsc::Sender<Input>,
    conns: Arc<AtomicU64>,
}

impl Handle {
    /// A number for a new connection.
    pub(crate) fn next_conn(&self) -> Conn {
        Conn(self.conns.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(crate) async fn send(&self, input: Input) -> Result<(), Stopped> {
        self.inbox.send(input).await.map_err(|_| Stopped)
    }

    /// Asks something about the core's state.
    pub(crate) async fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Master, &Peers) -> T + Send + 'static) -> Result<T, Stopped> {
        let (tx, rx) = oneshot::channel();
        self.send(Input::Ask(Box::new(move |master, peers| drop(tx.send(question(master, peers)))))).await?;
        rx.await.map_err(|_| Stopped)
    }
}

/// The loop's own state.
pub(crate) struct EventLoop {
    master: Master,
    clock: Clock,
    peers: Peers,
    inbox: mpsc::Receiver<Input>,
    registry: Box<dyn Registry>,
    frameworks_made: u64,
    heartbeat: Instant,
}

impl EventLoop {
    /// A loop around `master`, which was recovered from what is in `registry`. Agents will be told to beat so often.
    pub(crate) fn new(master: Master, registry: Box<dyn Registry>, clock: Clock, agents_beat: DurationMs) -> (Self, Handle) {
        let (tx, inbox) = mpsc::channel(INBOX);
        let this = Self { master, clock, peers: Peers::new(agents_beat), inbox, registry, frameworks_made: 0, heartbeat: Instant::now() };
        (this, Handle { inbox: tx, conns: Arc::default() })
    }

    /// Runs until `stop`; then every stream ends with a word that says to connect again, and the registry is closed.
    ///
    /// # Errors
    /// When the registry cannot be written: what was decided in that batch is told to nobody.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), RegistryError> {
        let ended = self.turn(&stop).await;
        self.peers.end_all(match &ended {
            Ok(()) => "the master is stepping down; connect again",
            Err(_) => "the master cannot write its registry and stops; connect again",
        });
        ended
    }

    async fn turn(&mut self, stop: &CancellationToken) -> Result<(), RegistryError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let mut effects = Effects::default();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                n = self.inbox.recv_many(&mut batch, BATCH) => {
                    if n == 0 {
                        return Ok(());
                    }
                }
                _ = tick.tick() => {
                    effects.merge(self.step(Event::Tick));
                    self.beat();
                }
            }
            for input in batch.drain(..) {
                effects.merge(self.take(input));
            }
            effects.merge(self.step(Event::BatchEnd));
            self.deliver(effects)?;
        }
    }

    fn step(&mut self, event: Event) -> Effects {
        let now = self.clock.now();
        self.master.step(now, event)
    }

    fn take(&mut self, input: Input) -> Effects {
        let event = match input {
            Input::AgentArrived { conn, queue, registration } => {
                tracing::info!(%conn, agent = %registration.info.id, total = %registration.info.total, tasks = registration.tasks.len(), "agent registers");
                self.peers.add_agent(conn, queue);
                Event::AgentRegistered { conn, registration }
            }
            Input::FrameworkArrived { conn, queue, subscription } => {
                tracing::info!(%conn, name = subscription.info.name, id = ?subscription.id, "framework subscribes");
                self.peers.add_framework(conn, queue);
                Event::FrameworkSubscribed { conn, subscription, fresh: self.fresh_framework() }
            }
            Input::Event(event) => {
                if let Event::AgentUpdates { conn, .. } = &event {
                    self.peers.count_received(*conn);
                }
                event
            }
            Input::Counters { conn, counters } => {
                self.peers.set_counters(conn, counters);
                return Effects::default();
            }
            Input::Executors { conn, reports } => {
                self.peers.set_executors(conn, reports);
                return Effects::default();
            }
            Input::Gone(conn) => match self.peers.remove(conn) {
                Some(event) => event,
                None => return Effects::default(),
            },
            Input::Refuse { conn, call, message } => {
                let event = FrameworkEvent::Refused { call: call.to_owned(), message };
                self.peers.add(Message::ToFramework { conn, event });
                return Effects::default();
            }
            Input::Ask(question) => {
                question(&self.master, &self.peers);
                return Effects::default();
            }
            Input::Read { request, task, agent, sent } => {
                let _ = sent.send(self.pass_read(request, task, agent));
                return Effects::default();
            }
        };
        self.step(event)
    }

    fn fresh_framework(&mut self) -> FrameworkId {
        self.frameworks_made += 1;
        let id = format!("F{:x}-{}", self.master.epoch().0, self.frameworks_made);
        FrameworkId::new(id).expect("hexadecimal digits and a number are a valid id")
    }

    fn pass_read(&mut self, request: v1::ReadRequest, task: TaskKey, agent: Option<AgentId>) -> Result<AgentId, NoAgent> {
        let agent = match agent.or_else(|| self.master.agent_of_task(&task)) {
            Some(agent) => agent,
            None => return Err(NoAgent::UnknownTask(task)),
        };
        match self.master.agent_connection(&agent) {
            Some(conn) if self.peers.read(conn, request) => Ok(agent),
            None if !self.master.knows_agent(&agent) => Err(NoAgent::UnknownAgent(agent)),
            _ => Err(NoAgent::NotConnected(agent)),
        }
    }

    /// Persist, then send. A peer that cannot take its frames is a disconnected peer, which may free resources, which
    /// makes more messages: until nothing is left to say.
    fn deliver(&mut self, effects: Effects) -> Result<(), RegistryError> {
        let mut effects = effects;
        loop {
            let messages = effects.commit(|records| self.registry.write(records))?;
            messages.into_iter().for_each(|message| self.peers.add(message));
            let lost = self.peers.flush();
            if lost.is_empty() {
                return Ok(());
            }
            effects = Effects::default();
            for event in lost {
                effects.merge(self.step(event));
            }
            effects.merge(self.step(Event::BatchEnd));
        }
    }

    fn beat(&mut self) {
        if self.heartbeat.elapsed() >= Duration::from_millis(HEARTBEAT_INTERVAL_MS) {
            self.heartbeat = Instant::now();
            let now = self.clock.now();
            self.peers.heartbeat(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::queue;
    use futures::StreamExt;
    use smalti_master_core::{Config, Record, Stored};
    use smalti_types::{AgentInfo, Attributes, Bytes, MasterEpoch, MilliCpus, Resources, Time};

    #[derive(Debug)]
    struct FullDisk;

    impl Registry for FullDisk {
        fn load(&mut self) -> Result<Stored, RegistryError> {
            Ok(Stored::default())
        }

        fn next_epoch(&mut self, floor: MasterEpoch) -> Result<MasterEpoch, RegistryError> {
            Ok(floor)
        }

        fn write(&mut self, records: Vec<Record>) -> Result<(), RegistryError> {
            let cause = std::io::ErrorKind::StorageFull.into();
            if records.is_empty() { Ok(()) } else { Err(RegistryError::Io { doing: "write to", path: "registry".into(), cause }) }
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_down_is_told_to_nobody() {
        let master = Master::new(Config::default(), MasterEpoch(1), Time(1));
        let (event_loop, handle) = EventLoop::new(master, Box::new(FullDisk), Clock::default(), DurationMs(1_000));
        let (queue, outbound, _stop) = queue();
        let info = AgentInfo {
            id: AgentId::new("a1").unwrap(),
            hostname: "a1".into(),
            total: Resources::new(MilliCpus(1_000), Bytes::gib(1)),
            overhead: Resources::default(),
            attributes: Attributes::default(),
            isolation: BTreeMap::new(),
            boot_id: "boot".into(),
            incarnation: 1,
        };
        let registration = Registration { info, tasks: vec![], unacknowledged: vec![] };
        let conn = handle.next_conn();
        handle.send(Input::AgentArrived { conn, queue, registration }).await.unwrap();
        let error = event_loop.run(CancellationToken::new()).await.unwrap_err().to_string();
        assert!(error.contains("free space") && error.contains("write to the registry"), "{error}");
        let told: Vec<Result<v1::MasterToAgent, tonic::Status>> = outbound.collect().await;
        let only_the_end = matches!(&told[..], [Err(status)] if status.message().contains("cannot write its registry"));
        assert!(only_the_end, "{told:?}");
        assert_eq!(handle.send(Input::Gone(conn)).await, Err(Stopped), "it takes nothing any more");
    }
}
