//! The agents' gRPC service: the control stream, and the answers to reads of sandboxes.
//!
//! Turns frames into events and nothing else. A frame that is not valid ends the connection with its reason: an agent
//! that misspeaks once cannot be trusted with the accounting.

use crate::event_loop::{Handle, Input, Stopped};
use crate::executor_reports::bounded;
use crate::frames::AgentFrame;
use crate::outbound::{Outbound, Queue, queue};
use crate::sandbox_relay::Relay;
use smalti_master_core::{Conn, Event};
use smalti_proto::{v1, version};
use smalti_types::protocol::Registration;
use smalti_types::{BootTime, HoldingKey};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use v1::agent_to_master::Message;

/// Time for the first message of a connection.
pub(crate) const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Counters kept per agent; more are left out.
const MAX_COUNTERS: usize = 256;
/// Longest name of a counter in bytes.
const MAX_COUNTER_NAME: usize = 128;

/// The service.
#[derive(Debug)]
pub(crate) struct Agents {
    pub(crate) handle: Handle,
    pub(crate) relay: Relay,
    /// How long an agent may be silent; it sends heartbeats.
    pub(crate) ping_timeout: Duration,
}

#[tonic::async_trait]
impl v1::agent_service_server::AgentService for Agents {
    type ConnectStream = Outbound<AgentFrame>;

    async fn connect(&self, request: Request<Streaming<v1::AgentToMaster>>) -> Result<Response<Self::ConnectStream>, Status> {
        let (queue, outbound, stop) = queue();
        let reader = Reader {
            handle: self.handle.clone(),
            relay: self.relay.clone(),
            ping_timeout: self.ping_timeout,
            conn: self.handle.next_conn(),
            inbound: request.into_inner(),
        };
        tokio::spawn(reader.run(queue, stop));
        Ok(Response::new(outbound))
    }

    async fn serve_read(&self, request: Request<Streaming<v1::ReadReply>>) -> Result<Response<v1::Empty>, Status> {
        self.relay.serve(request.into_inner()).await?;
        Ok(Response::new(v1::Empty {}))
    }
}

/// Reads one agent's control stream.
struct Reader {
    handle: Handle,
    relay: Relay,
    ping_timeout: Duration,
    conn: Conn,
    inbound: Streaming<v1::AgentToMaster>,
}

impl Reader {
    async fn run(mut self, queue: Queue<AgentFrame>, stop: CancellationToken) {
        let registration = match self.first().await {
            Ok(registration) => registration,
            Err(reason) => {
                tracing::warn!(conn = %self.conn, reason, "agent refused");
                let _ = queue.push(AgentFrame::Refused(reason.clone()));
                return queue.end(Status::failed_precondition(reason));
            }
        };
        let conn = self.conn;
        if self.handle.send(Input::AgentArrived { conn, queue, registration }).await.is_err() {
            return;
        }
        let ended = tokio::select! {
            () = stop.cancelled() => return, // The loop let go of it: nobody waits for what it says.
            ended = self.read() => ended,
        };
        tracing::info!(%conn, reason = ended, "agent's connection ended");
        let _ = self.handle.send(Input::Gone(conn)).await;
    }

    async fn first(&mut self) -> Result<Registration, String> {
        let message = tokio::time::timeout(FIRST_MESSAGE, self.inbound.message())
            .await
            .map_err(|_| "no Register arrived in time".to_owned())?
            .map_err(|status| format!("the first message cannot be read: {}", status.message()))?;
        let Some(Message::Register(register)) = message.and_then(|m| m.message) else {
            return Err("the first message must be Register".to_owned());
        };
        version::check(register.version.clone().unwrap_or_default())?;
        Registration::try_from(register).map_err(|e| e.to_string())
    }

    /// Until the connection ends; gives the reason.
    async fn read(&mut self) -> String {
        loop {
            let message = match tokio::time::timeout(self.ping_timeout, self.inbound.message()).await {
                Err(_) => return format!("silent for {} ms", self.ping_timeout.as_millis()),
                Ok(Err(status)) => return status.message().to_owned(),
                Ok(Ok(None)) => return "the agent closed it".to_owned(),
                Ok(Ok(Some(message))) => message.message,
            };
            match self.take(message).await {
                Ok(Ok(())) => {}
                Ok(Err(problem)) => return problem,
                Err(stopped) => return stopped.to_string(),
            }
        }
    }

    async fn take(&self, message: Option<Message>) -> Result<Result<(), String>, Stopped> {
        let conn = self.conn;
        match message {
            Some(Message::Updates(batch)) => match batch.try_into() {
                Ok(updates) => self.handle.send(Input::Event(Event::AgentUpdates { conn, updates })).await?,
                Err(e) => return Ok(Err(smalti_proto::convert::ConvertError::to_string(&e))),
            },
            Some(Message::Heartbeat(heartbeat)) => {
                if let Some(asked) = heartbeat.lease_asked_us.map(BootTime) {
                    self.handle.send(Input::Event(Event::AgentLease { conn, asked })).await?;
                }
                if heartbeat.counters.is_empty() {
                    return Ok(Ok(()));
                }
                let short = heartbeat.counters.into_iter().filter(|(name, _)| name.len() <= MAX_COUNTER_NAME).take(MAX_COUNTERS);
                self.handle.send(Input::Counters { conn, counters: short.collect() }).await?;
            }
            Some(Message::Executors(reports)) => {
                self.handle.send(Input::Executors { conn, reports: bounded(reports) }).await?;
            }
            Some(Message::Holdings(news)) => match news.try_into() {
                Ok(news) => self.handle.send(Input::Event(Event::AgentHolds { conn, news })).await?,
                Err(e) => return Ok(Err(smalti_proto::convert::ConvertError::to_string(&e))),
            },
            Some(Message::Locate(v1::Locate { ticket, role, key })) => match role.parse() {
                Ok(role) => self.handle.send(Input::Event(Event::AgentLocates { conn, ticket, role, key: HoldingKey(key) })).await?,
                Err(e) => return Ok(Err(smalti_types::id::IdError::to_string(&e))),
            },
            Some(Message::LocateEnd(end)) => {
                let outcome = end.outcome().into();
                self.handle.send(Input::Event(Event::AgentLocated { conn, ticket: end.ticket, outcome })).await?;
            }
            Some(Message::ReadRefused(refusal)) => self.relay.refuse(&refusal),
            Some(Message::Deregister(goodbye)) => {
                self.handle.send(Input::Event(Event::AgentDeregistered { conn, reason: goodbye.reason })).await?;
            }
            Some(Message::Register(_)) => return Ok(Err("a second Register on one connection".to_owned())),
            None => {} // A message of a later protocol.
        }
        Ok(Ok(()))
    }
}
