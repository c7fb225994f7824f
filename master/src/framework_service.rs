//! The frameworks' gRPC service: one stream of calls in, one stream of events out.
//!
//! Turns calls into events and nothing else. A call that is not valid is refused with its reason; the subscription goes
//! on. A scheduler that hangs is noticed by HTTP/2 pings.

use crate::agent_service::FIRST_MESSAGE;
use crate::event_loop::{Handle, Input, Stopped};
use crate::frames::FrameworkFrame;
use crate::outbound::{Outbound, Queue, queue};
use smalti_master_core::{Conn, Event};
use smalti_proto::{v1, version};
use smalti_types::protocol::{Call, FrameworkEvent, Subscription};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// The service.
#[derive(Debug)]
pub(crate) struct Frameworks {
    pub(crate) handle: Handle,
}

#[tonic::async_trait]
impl v1::framework_service_server::FrameworkService for Frameworks {
    type SubscribeStream = Outbound<FrameworkFrame>;

    async fn subscribe(&self, request: Request<Streaming<v1::Call>>) -> Result<Response<Self::SubscribeStream>, Status> {
        let (queue, outbound, stop) = queue();
        let reader = Reader { handle: self.handle.clone(), conn: self.handle.next_conn(), inbound: request.into_inner() };
        tokio::spawn(reader.run(queue, stop));
        Ok(Response::new(outbound))
    }
}

/// Reads one framework's calls.
struct Reader {
    handle: Handle,
    conn: Conn,
    inbound: Streaming<v1::Call>,
}

impl Reader {
    async fn run(mut self, queue: Queue<FrameworkFrame>, stop: CancellationToken) {
        let subscription = match self.first().await {
            Ok(subscription) => subscription,
            Err(reason) => {
                tracing::warn!(conn = %self.conn, reason, "framework refused");
                let _ = queue.push(FrameworkFrame::event(FrameworkEvent::Error(reason.clone())));
                return queue.end(Status::failed_precondition(reason));
            }
        };
        let conn = self.conn;
        if self.handle.send(Input::FrameworkArrived { conn, queue, subscription }).await.is_err() {
            return;
        }
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = self.read() => ended,
        };
        tracing::info!(%conn, reason = ended, "framework's connection ended");
        let _ = self.handle.send(Input::Gone(conn)).await;
    }

    async fn first(&mut self) -> Result<Subscription, String> {
        let message = tokio::time::timeout(FIRST_MESSAGE, self.inbound.message())
            .await
            .map_err(|_| "no Subscribe arrived in time".to_owned())?
            .map_err(|status| format!("the first call cannot be read: {}", status.message()))?;
        let Some(v1::call::Call::Subscribe(subscribe)) = message.and_then(|m| m.call) else {
            return Err("the first call must be Subscribe".to_owned());
        };
        version::check(subscribe.version.clone().unwrap_or_default())?;
        Subscription::try_from(subscribe).map_err(|e| e.to_string())
    }

    /// Until the connection ends; gives the reason.
    async fn read(&mut self) -> String {
        loop {
            let message = match self.inbound.message().await {
                Err(status) => return status.message().to_owned(),
                Ok(None) => return "the framework closed it".to_owned(),
                Ok(Some(message)) => message,
            };
            if let Err(stopped) = self.take(message).await {
                return stopped.to_string();
            }
        }
    }

    async fn take(&self, message: v1::Call) -> Result<(), Stopped> {
        let conn = self.conn;
        if message.call.is_none() {
            return Ok(()); // A call of a later protocol.
        }
        let name = call_name(&message);
        match Call::try_from(message) {
            Ok(call) => self.handle.send(Input::Event(Event::FrameworkCall { conn, call })).await,
            Err(problem) => self.handle.send(Input::Refuse { conn, call: name, message: problem.to_string() }).await,
        }
    }
}

fn call_name(message: &v1::Call) -> &'static str {
    use v1::call::Call as Wire;
    match &message.call {
        Some(Wire::Subscribe(_)) => "subscribe",
        Some(Wire::Accept(_)) => "accept",
        Some(Wire::Decline(_)) => "decline",
        Some(Wire::Revive(_)) => "revive",
        Some(Wire::Suppress(_)) => "suppress",
        Some(Wire::Kill(_)) => "kill",
        Some(Wire::Acknowledge(_)) => "acknowledge",
        Some(Wire::Reconcile(_)) => "reconcile",
        Some(Wire::Assign(_)) => "assign_items",
        Some(Wire::ReturnItems(_)) => "return_items",
        Some(Wire::Teardown(_)) => "teardown",
        None => "unknown",
    }
}
