//! Reads of sandboxes, relayed: a caller asks the master, the master asks the agent over its control stream, the agent
//! opens a stream of its own, and the chunks flow through with the caller's own flow control.
//!
//! Owns the reads that wait for their agent. Keeps no data: a chunk is taken from the agent only when the caller has
//! taken those before. Read ids are random, so that one agent cannot answer for another.

use smalti_proto::v1;
use smalti_types::AgentId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use v1::read_reply::Message;

/// Time for the agent to open its stream, and for the first message on it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Chunks in flight per read.
const CHUNKS: usize = 4;
/// Reads that wait for their agents at the same time.
const MAX_WAITING: usize = 4_096;

/// What the caller reads.
pub(crate) type ReadStream = ReceiverStream<Result<v1::ReadReply, Status>>;
/// How a read begins: with the stream of its chunks, or not at all.
type Begin = Result<ReadStream, Status>;
type Waiting = BTreeMap<u64, oneshot::Sender<Begin>>;

/// The reads of all callers that wait for their agents.
#[derive(Debug, Clone, Default)]
pub(crate) struct Relay {
    waiting: Arc<Mutex<Waiting>>,
}

/// A read that waits for its agent. Forgotten when dropped.
#[derive(Debug)]
pub(crate) struct Announced {
    relay: Relay,
    pub(crate) id: u64,
    begin: oneshot::Receiver<Begin>,
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.relay.lock().remove(&self.id);
    }
}

impl Announced {
    /// Waits until `agent` begins to answer.
    pub(crate) async fn begun(self, agent: &AgentId) -> Begin {
        self.begun_within(agent, ANSWER_TIMEOUT).await
    }

    async fn begun_within(mut self, agent: &AgentId, span: Duration) -> Begin {
        match tokio::time::timeout(span, &mut self.begin).await {
            Ok(Ok(begin)) => begin,
            Ok(Err(_)) => Err(Status::unavailable("the read was given up")),
            Err(_) => Err(Status::deadline_exceeded(format!("agent {agent} did not answer within {} s", span.as_secs()))),
        }
    }
}

impl Relay {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new read under a fresh id.
    pub(crate) fn announce(&self) -> Result<Announced, Status> {
        let (tx, begin) = oneshot::channel();
        let (id, _) = uuid::Uuid::new_v4().as_u64_pair();
        let mut waiting = self.lock();
        if waiting.len() >= MAX_WAITING {
            return Err(Status::resource_exhausted(format!("{MAX_WAITING} reads wait for their agents already; try again later")));
        }
        waiting.insert(id, tx);
        Ok(Announced { relay: self.clone(), id, begin })
    }

    /// The agent says no.
    pub(crate) fn refuse(&self, refusal: &v1::ReadRefused) {
        let waiting = self.lock().remove(&refusal.read_id);
        if let Some(begin) = waiting {
            let reason: String = refusal.reason.chars().take(1_024).collect();
            let _ = begin.send(Err(Status::not_found(reason)));
        }
    }

    /// An agent answers: carries its chunks to the caller, no faster than the caller reads.
    pub(crate) async fn serve(&self, mut answer: Streaming<v1::ReadReply>) -> Result<(), Status> {
        let first = tokio::time::timeout(ANSWER_TIMEOUT, answer.message());
        let first = first.await.map_err(|_| Status::deadline_exceeded("no read id arrived"))??;
        let Some(Message::ReadId(id)) = first.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("the first message must be the read id"));
        };
        let waiting = self.lock().remove(&id).ok_or_else(|| Status::not_found("nobody waits for this read"))?;
        let (tx, rx) = mpsc::channel(CHUNKS);
        if waiting.send(Ok(ReceiverStream::new(rx))).is_err() {
            return Err(Status::cancelled("the reader is gone"));
        }
        loop {
            let message = tokio::select! {
                message = answer.message() => message,
                () = tx.closed() => return Err(Status::cancelled("the reader is gone")),
            };
            let next = match message {
                Ok(None) => return Ok(()),
                Ok(Some(v1::ReadReply { message: Some(Message::ReadId(_)) | None })) => continue,
                Ok(Some(reply)) => Ok(reply),
                Err(status) => Err(Status::unavailable(format!("the agent's answer broke off: {}", status.message()))),
            };
            let over = next.is_err();
            if tx.send(next).await.is_err() {
                return Err(Status::cancelled("the reader is gone"));
            }
            if over {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refused_read_ends_with_the_agents_words() {
        let relay = Relay::default();
        let read = relay.announce().unwrap();
        relay.refuse(&v1::ReadRefused { read_id: read.id, reason: "no such file".into() });
        assert_eq!(read.begun(&AgentId::new("a1").unwrap()).await.unwrap_err().message(), "no such file");
    }

    #[tokio::test]
    async fn an_agent_that_does_not_answer_is_waited_for_only_so_long() {
        let relay = Relay::default();
        let read = relay.announce().unwrap();
        let late = read.begun_within(&AgentId::new("a1").unwrap(), Duration::ZERO).await.unwrap_err();
        assert_eq!((late.code(), late.message()), (tonic::Code::DeadlineExceeded, "agent a1 did not answer within 0 s"));
        assert!(relay.lock().is_empty(), "nothing is left behind");
    }
}
