//! One simulated agent's connection: opened by it, registered anew each time, kept up with growing pauses.

use super::Counts;
use super::tasks::{Outcome, Tasks};
use smalti_proto::convert::MAX_FRAME_LEN;
use smalti_proto::v1::{self, agent_service_client::AgentServiceClient, agent_to_master::Message, master_to_agent};
use smalti_proto::{client, version};
use smalti_types::protocol::{AgentCommand, Registration};
use smalti_types::{AgentInfo, StatusUpdate, Time};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// As agents have them.
const OUTBOUND: usize = 64;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a connection and its registration may take when thousands come at once.
const REGISTER_WITHIN: Duration = Duration::from_secs(60);
/// How long a goodbye may take.
const GOODBYE_WITHIN: Duration = Duration::from_secs(5);

/// One agent.
pub(super) struct Agent {
    pub(super) master: String,
    pub(super) info: AgentInfo,
    pub(super) tasks: Tasks,
    pub(super) counts: Arc<Counts>,
    pub(super) leaving: watch::Receiver<bool>,
    pub(super) turn: Arc<Semaphore>,
}

/// Why a connection ended.
enum End {
    Again,
    Left,
    Final(String),
}

/// A registered connection.
struct Connection {
    stream: Streaming<v1::MasterToAgent>,
    outbound: mpsc::Sender<v1::AgentToMaster>,
    interval: Duration,
}

impl Agent {
    /// Until the swarm leaves.
    ///
    /// # Errors
    /// When there is no sense in trying again.
    pub(super) async fn run(mut self) -> Result<(), String> {
        let mut pause = FIRST_PAUSE;
        let mut connections = 0_u64;
        loop {
            let connected = self.connect().await;
            let end = match connected {
                Ok(connection) => {
                    Counts::add(&self.counts.registered, 1);
                    Counts::add(&self.counts.reconnects, u64::from(connections > 0));
                    connections += 1;
                    pause = FIRST_PAUSE;
                    let end = self.talk(connection).await;
                    self.counts.registered.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
                    end
                }
                Err(end) => end,
            };
            match end {
                End::Left => return Ok(()),
                End::Final(why) => return Err(why),
                End::Again => {}
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = left(&mut self.leaving) => return Ok(()),
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    async fn connect(&mut self) -> Result<Connection, End> {
        let mut leaving = self.leaving.clone();
        tokio::select! {
            connected = tokio::time::timeout(REGISTER_WITHIN, self.register()) => connected.unwrap_or(Err(End::Again)),
            () = left(&mut leaving) => Err(End::Left),
        }
    }

    async fn register(&self) -> Result<Connection, End> {
        let _turn = self.turn.acquire().await.map_err(|_| End::Left)?;
        let channel = client::connect(&self.master).await.map_err(|e| match e {
            client::ConnectError::Address { .. } => End::Final(e.to_string()),
            client::ConnectError::NoMaster { .. } => End::Again,
        })?;
        let mut client = AgentServiceClient::new(channel).max_decoding_message_size(MAX_FRAME_LEN).max_encoding_message_size(MAX_FRAME_LEN);
        let (outbound, receiver) = mpsc::channel(OUTBOUND);
        let (tasks, unacknowledged) = self.tasks.registration();
        let registration = Registration { info: self.info.clone(), tasks, unacknowledged };
        send(&outbound, Message::Register(registration.into())).await?;
        let mut stream = client.connect(ReceiverStream::new(receiver)).await.map_err(|_| End::Again)?.into_inner();
        let first = stream.message().await.map_err(|_| End::Again)?;
        match first.and_then(|m| m.message) {
            Some(master_to_agent::Message::Registered(answer)) => {
                if let Some(reason) = answer.version.and_then(|v| version::check(v).err()) {
                    return Err(End::Final(reason));
                }
                let interval = match answer.heartbeat_interval_ms {
                    0 => HEARTBEAT,
                    ms => Duration::from_millis(ms),
                };
                Ok(Connection { stream, outbound, interval })
            }
            Some(master_to_agent::Message::Refused(refused)) => {
                Err(End::Final(format!("the master at {} refuses agent {}: {}", self.master, self.info.id, refused.reason)))
            }
            _ => Err(End::Final(format!("{} does not speak as a master", self.master))),
        }
    }

    async fn talk(&mut self, mut connection: Connection) -> End {
        let mut heartbeat = tokio::time::interval(connection.interval);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leaving = self.leaving.clone();
        loop {
            let ending = self.tasks.next_end();
            let at = tokio::time::Instant::from_std(ending.unwrap_or_else(Instant::now));
            let mut out = Outcome::default();
            tokio::select! {
                message = connection.stream.message() => match message {
                    Ok(Some(message)) => self.take(message, &connection, &mut out),
                    Ok(None) | Err(_) => return End::Again,
                },
                () = tokio::time::sleep_until(at), if ending.is_some() => self.tasks.elapse(Instant::now(), now(), &mut out),
                _ = heartbeat.tick() => {
                    Counts::add(&self.counts.beats, 1);
                    // When the network is behind, what waits is sign of life enough.
                    let beat = v1::Heartbeat { time_us: now().0, ..v1::Heartbeat::default() };
                    let _ = connection.outbound.try_send(v1::AgentToMaster { message: Some(Message::Heartbeat(beat)) });
                    out.updates = self.tasks.again(Instant::now());
                }
                () = left(&mut leaving) => return goodbye(connection).await,
            }
            Counts::add(&self.counts.launched, out.launched);
            Counts::add(&self.counts.ended, out.ended);
            if let Err(end) = say(&connection.outbound, out.updates).await {
                return end;
            }
        }
    }

    fn take(&mut self, message: v1::MasterToAgent, connection: &Connection, out: &mut Outcome) {
        match message.message {
            Some(master_to_agent::Message::Commands(batch)) => {
                let (instant, time) = (Instant::now(), now());
                for command in batch.commands.into_iter().filter_map(|c| AgentCommand::try_from(c).ok()) {
                    self.tasks.command(command, instant, time, out);
                }
            }
            Some(master_to_agent::Message::Read(request)) => {
                let refused = v1::ReadRefused { read_id: request.read_id, reason: "a simulated agent has no outputs".into() };
                let _ = connection.outbound.try_send(v1::AgentToMaster { message: Some(Message::ReadRefused(refused)) });
            }
            _ => {}
        }
    }
}

async fn send(outbound: &mpsc::Sender<v1::AgentToMaster>, message: Message) -> Result<(), End> {
    outbound.send(v1::AgentToMaster { message: Some(message) }).await.map_err(|_| End::Again)
}

async fn say(outbound: &mpsc::Sender<v1::AgentToMaster>, updates: Vec<StatusUpdate>) -> Result<(), End> {
    if updates.is_empty() { Ok(()) } else { send(outbound, Message::Updates(updates.into())).await }
}

async fn goodbye(connection: Connection) -> End {
    let Connection { mut stream, outbound, .. } = connection;
    let message = Message::Deregister(v1::Deregister { reason: "the swarm was stopped".into() });
    let _ = tokio::time::timeout(GOODBYE_WITHIN, async {
        if send(&outbound, message).await.is_ok() {
            drop(outbound);
            while let Ok(Some(_)) = stream.message().await {}
        }
    })
    .await;
    End::Left
}

async fn left(leaving: &mut watch::Receiver<bool>) {
    // A swarm that was dropped is the same.
    let _ = leaving.wait_for(|leave| *leave).await;
}

fn now() -> Time {
    Time::from(SystemTime::now())
}
