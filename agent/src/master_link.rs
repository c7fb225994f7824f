//! The connection to the master: opened by the agent, kept up with growing pauses, registered anew each time.
//!
//! Owns connecting, the heartbeat and the stream's first messages. Commands go to the event loop as they come, read requests to `reads`.
//! Deliberately absent: what commands mean, and what to say about tasks.

use crate::event_loop::{Ending, Input};
use crate::figures::Figures;
use crate::prepare::Locator;
use crate::reads::Reads;
use smalti_proto::convert::MAX_FRAME_LEN;
use smalti_proto::v1::{self, agent_service_client::AgentServiceClient, agent_to_master, master_to_agent};
use smalti_proto::{client, version};
use smalti_types::protocol::{AgentCommand, Registration};
use smalti_types::{AgentInfo, MasterEpoch, Time};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// Pauses between two attempts to connect grow from this …
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// … to this.
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// Messages that wait for the network.
const OUTBOUND: usize = 64;
/// Between two heartbeats, unless the master says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The master may ask for heartbeats no closer and no further apart than this.
const HEARTBEAT_BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// How long an agent that ends waits for the master to take its goodbye.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);
/// What a lease is taken to be before the first one came, and the shortest by which renewals are timed.
const FIRST_LEASE: Duration = Duration::from_secs(15);
const SHORTEST_LEASE: Duration = Duration::from_millis(300);
/// A lease is renewed this often in its time.
const RENEWALS: u32 = 3;
/// How long the master may take to answer a registration.
const REGISTER_WITHIN: Duration = Duration::from_secs(30);

/// Why the link ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The address is none.
    #[error(transparent)]
    Address(client::ConnectError),
    /// The master does not want this agent.
    #[error("the master at {addr} refuses this agent: {reason}")]
    Refused {
        /// Its address.
        addr: String,
        /// Its words.
        reason: String,
    },
}

/// Why one connection ended.
enum End {
    /// Try again.
    Again(String),
    /// Trying again will not help.
    Final(Error),
    /// The agent ends.
    Shutdown,
}

/// What the link needs.
pub(crate) struct MasterLink {
    /// `host:port`.
    pub(crate) addr: String,
    pub(crate) info: AgentInfo,
    pub(crate) inbox: mpsc::Sender<Input>,
    pub(crate) reads: Reads,
    pub(crate) figures: Arc<Figures>,
    /// Asks the master where to fetch from.
    pub(crate) locator: Locator,
    /// Whether exclusive tasks need a lease.
    pub(crate) lease_wanted: watch::Receiver<bool>,
    /// When the agent ends: then it says goodbye, unless its executors go on.
    pub(crate) shutdown: watch::Receiver<Ending>,
}

impl MasterLink {
    /// Keeps a connection until the agent ends. Prints the ready line after the first registration.
    ///
    /// # Errors
    /// When the address is none, or the master refuses this agent before it ever took it.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        let (mut connection, mut pause, mut registered, mut told) = (0, FIRST_PAUSE, false, false);
        loop {
            connection += 1;
            let began = Instant::now();
            let had = registered;
            let end = self.connect_once(connection, &mut registered).await;
            self.locator.disconnected();
            let _ = self.inbox.send(Input::Disconnected { connection }).await;
            match end {
                End::Shutdown => return Ok(()),
                End::Final(e @ Error::Refused { .. }) if had => tracing::warn!("{e}"),
                End::Final(e) => return Err(e),
                // One line per outage, not one per attempt.
                End::Again(why) if !told || registered != had => {
                    tracing::warn!("no connection to the master: {why}; trying again");
                    told = true;
                }
                End::Again(why) => tracing::debug!("no connection to the master: {why}"),
            }
            if began.elapsed() > LAST_PAUSE {
                pause = FIRST_PAUSE;
                told = false;
            }
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(jitter())) => {}
                () = ended(&mut self.shutdown) => return Ok(()),
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    async fn connect_once(&mut self, connection: u64, registered: &mut bool) -> End {
        let channel = tokio::select! {
            channel = client::connect(&self.addr) => match channel {
                Ok(channel) => channel,
                Err(e @ client::ConnectError::Address { .. }) => return End::Final(Error::Address(e)),
                Err(e) => return End::Again(e.to_string()),
            },
            () = ended(&mut self.shutdown) => return End::Shutdown,
        };
        let mut client = AgentServiceClient::new(channel).max_decoding_message_size(MAX_FRAME_LEN).max_encoding_message_size(MAX_FRAME_LEN);
        let (outbound, receiver) = mpsc::channel(OUTBOUND);
        if let Err(end) = self.register(connection, &outbound).await {
            return end;
        }
        let answer = tokio::time::timeout(REGISTER_WITHIN, async {
            let mut stream = client.connect(ReceiverStream::new(receiver)).await?.into_inner();
            let first = stream.message().await?;
            Ok::<_, tonic::Status>((stream, first))
        });
        let (stream, first) = match answer.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => return End::Again(describe(&status)),
            Err(_) => return End::Again(format!("{} did not answer the registration within {REGISTER_WITHIN:?}", self.addr)),
        };
        let interval = match first.and_then(|m| m.message) {
            Some(master_to_agent::Message::Registered(answer)) => match self.accepted(connection, answer, &outbound, registered).await {
                Ok(interval) => interval,
                Err(end) => return end,
            },
            Some(master_to_agent::Message::Refused(refused)) => {
                return End::Final(Error::Refused { addr: self.addr.clone(), reason: refused.reason });
            }
            _ => return End::Again(format!("{} does not speak as a master", self.addr)),
        };
        self.talk(connection, stream, outbound, client, interval).await
    }

    /// The first message of a connection.
    async fn register(&self, connection: u64, outbound: &mpsc::Sender<v1::AgentToMaster>) -> Result<(), End> {
        let (reply, answer) = oneshot::channel();
        let input = Input::Register { connection, outbound: outbound.clone(), reply };
        self.inbox.send(input).await.map_err(|_| End::Shutdown)?;
        let (tasks, unacknowledged) = answer.await.map_err(|_| End::Shutdown)?;
        let registration = Registration { info: self.info.clone(), tasks, unacknowledged };
        let message = agent_to_master::Message::Register(v1::Register::from(registration));
        outbound.send(v1::AgentToMaster { message: Some(message) }).await.map_err(|_| End::Shutdown)
    }

    async fn accepted(
        &self,
        connection: u64,
        answer: v1::Registered,
        outbound: &mpsc::Sender<v1::AgentToMaster>,
        registered: &mut bool,
    ) -> Result<Duration, End> {
        let wants_holdings = answer.version.as_ref().is_some_and(|peer| version::has(peer, version::HOLDINGS));
        if let Some(peer) = answer.version
            && let Err(reason) = version::check(peer)
        {
            return Err(End::Final(Error::Refused { addr: self.addr.clone(), reason }));
        }
        let epoch = MasterEpoch(answer.epoch);
        if wants_holdings {
            self.locator.connected(outbound.clone());
        }
        self.inbox.send(Input::Registered { connection, epoch, wants_holdings }).await.map_err(|_| End::Shutdown)?;
        tracing::info!(agent = %self.info.id, master = %self.addr, "registered");
        if !std::mem::replace(registered, true) {
            crate::say_ready(&self.info.id);
        }
        Ok(match answer.heartbeat_interval_ms {
            0 => HEARTBEAT,
            ms => Duration::from_millis(ms).clamp(HEARTBEAT_BOUNDS.0, HEARTBEAT_BOUNDS.1),
        })
    }

    /// A sign of life. When the network is behind, what waits is sign of life enough.
    fn beat(&self, outbound: &mpsc::Sender<v1::AgentToMaster>) {
        let lease_asked_us = self.lease_wanted.borrow().then(boot_time_us);
        let beat = v1::Heartbeat { time_us: Time::from(SystemTime::now()).0, counters: self.figures.counters(), lease_asked_us };
        let _ = outbound.try_send(v1::AgentToMaster { message: Some(agent_to_master::Message::Heartbeat(beat)) });
    }

    async fn talk(
        &mut self,
        connection: u64,
        mut stream: Streaming<v1::MasterToAgent>,
        outbound: mpsc::Sender<v1::AgentToMaster>,
        client: AgentServiceClient<Channel>,
        interval: Duration,
    ) -> End {
        let mut heartbeat = tokio::time::interval(interval);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut lease, mut renewal) = (FIRST_LEASE, tokio::time::Instant::now());
        loop {
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(message)) => {
                        if let Some(granted) = granted(&message) {
                            lease = granted.clamp(SHORTEST_LEASE, FIRST_LEASE * 10);
                        }
                        match self.take(connection, message, &outbound, &client).await {
                            Ok(()) => {}
                            // The event loop ended while this message came in.
                            Err(End::Shutdown) => return self.leave(stream, outbound).await,
                            Err(end) => return end,
                        }
                    }
                    Ok(None) => return End::Again("the master ended the connection".into()),
                    Err(status) => return End::Again(describe(&status)),
                },
                _ = heartbeat.tick() => self.beat(&outbound),
                // The first exclusive task waits for its lease.
                Ok(()) = self.lease_wanted.changed() => self.beat(&outbound),
                () = tokio::time::sleep_until(renewal), if *self.lease_wanted.borrow() => {
                    self.beat(&outbound);
                    renewal = tokio::time::Instant::now() + lease / RENEWALS;
                }
                () = ended(&mut self.shutdown) => return self.leave(stream, outbound).await,
            }
        }
    }

    /// The agent ends: for good, or its executors wait for the next one.
    async fn leave(&self, stream: Streaming<v1::MasterToAgent>, outbound: mpsc::Sender<v1::AgentToMaster>) -> End {
        if *self.shutdown.borrow() == Ending::Alone { End::Shutdown } else { goodbye(stream, outbound).await }
    }

    async fn take(
        &self,
        connection: u64,
        message: v1::MasterToAgent,
        outbound: &mpsc::Sender<v1::AgentToMaster>,
        client: &AgentServiceClient<Channel>,
    ) -> Result<(), End> {
        match message.message {
            Some(master_to_agent::Message::Commands(batch)) => {
                let mut commands = Vec::with_capacity(batch.commands.len());
                for command in batch.commands {
                    match AgentCommand::try_from(command) {
                        Ok(command) => commands.push(command),
                        // The master has checked it: this is a difference between versions, or a bug.
                        Err(e) => tracing::error!("a command of the master is not understood: {e}"),
                    }
                }
                self.inbox.send(Input::Commands { connection, commands }).await.map_err(|_| End::Shutdown)
            }
            Some(master_to_agent::Message::Read(request)) => {
                let read_id = request.read_id;
                if let Err(reason) = self.reads.start(request, client.clone()) {
                    let refused = agent_to_master::Message::ReadRefused(v1::ReadRefused { read_id, reason });
                    let _ = outbound.try_send(v1::AgentToMaster { message: Some(refused) });
                }
                Ok(())
            }
            Some(master_to_agent::Message::Located(located)) => {
                self.locator.answered(&located);
                Ok(())
            }
            Some(master_to_agent::Message::Refused(refused)) => Err(End::Again(format!("the master ends it: {}", refused.reason))),
            Some(master_to_agent::Message::Heartbeat(_) | master_to_agent::Message::Registered(_)) | None => Ok(()),
        }
    }
}

/// The length of a lease, if the message has one.
fn granted(message: &v1::MasterToAgent) -> Option<Duration> {
    let Some(master_to_agent::Message::Commands(batch)) = &message.message else { return None };
    batch.commands.iter().find_map(|c| match &c.command {
        Some(v1::agent_command::Command::Lease(lease)) => Some(Duration::from_millis(lease.lease_ms)),
        _ => None,
    })
}

/// The machine's clock that goes on while it sleeps: what leases are measured by.
fn boot_time_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    seconds.saturating_mul(1_000_000).saturating_add(nanos / 1_000)
}

/// Tells the master that the agent ends, and waits until it has read that: it then closes the stream.
async fn goodbye(mut stream: Streaming<v1::MasterToAgent>, outbound: mpsc::Sender<v1::AgentToMaster>) -> End {
    let goodbye = v1::Deregister { reason: "the agent was stopped".into() };
    let message = v1::AgentToMaster { message: Some(agent_to_master::Message::Deregister(goodbye)) };
    let _ = tokio::time::timeout(GOODBYE_WITHIN, async {
        if outbound.send(message).await.is_ok() {
            drop(outbound);
            while let Ok(Some(_)) = stream.message().await {}
        }
    })
    .await;
    End::Shutdown
}

/// Resolves when the agent ends.
pub(crate) async fn ended(shutdown: &mut watch::Receiver<Ending>) {
    // A sender that is gone means the same.
    let _ = shutdown.wait_for(|ending| *ending != Ending::No).await;
}

fn describe(status: &tonic::Status) -> String {
    let text = status.message();
    if text.is_empty() { status.code().description().to_owned() } else { text.to_owned() }
}

/// Between 0.5 and 1: agents that lost their master together do not come back together.
fn jitter() -> f64 {
    let byte = uuid::Uuid::new_v4().as_bytes()[0];
    0.5 + f64::from(byte) / 512.0
}
