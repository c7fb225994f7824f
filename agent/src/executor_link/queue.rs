//! A bounded queue in front of an executor's socket, so that the event loop never waits for an executor.
//!
//! A full queue means that the executor does not read: the caller decides what that is worth (the agent ends the executor).

use super::LinkWriter;
use smalti_executor_protocol::v1::to_executor;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use tokio::sync::mpsc;

/// One message with its descriptors. They are shared, because a cached module's goes to many executors.
#[derive(Debug)]
pub struct Outgoing {
    /// What to say.
    pub message: to_executor::Message,
    /// What goes along, in the order that the message counts on.
    pub fds: Vec<Arc<OwnedFd>>,
}

impl From<to_executor::Message> for Outgoing {
    fn from(message: to_executor::Message) -> Self {
        Self { message, fds: Vec::new() }
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The executor does not read.
    #[error("the executor does not read: its queue is full")]
    Full,
    /// The connection is gone.
    #[error("the connection to the executor is gone")]
    Closed,
}

/// Puts messages into the queue. Clones share it; when the last one is dropped, what is queued is still sent.
#[derive(Debug, Clone)]
pub struct LinkSender {
    queue: mpsc::Sender<Outgoing>,
}

impl LinkSender {
    /// Queues a message at once or not at all.
    ///
    /// # Errors
    /// When the queue is full or the connection gone.
    pub fn try_send(&self, outgoing: impl Into<Outgoing>) -> Result<(), SendError> {
        self.queue.try_send(outgoing.into()).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => SendError::Full,
            mpsc::error::TrySendError::Closed(_) => SendError::Closed,
        })
    }

    /// Queues a message, waiting for room.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&self, outgoing: impl Into<Outgoing>) -> Result<(), SendError> {
        self.queue.send(outgoing.into()).await.map_err(|_| SendError::Closed)
    }
}

pub(super) fn start(mut writer: LinkWriter, capacity: usize) -> LinkSender {
    let (queue, mut inbox) = mpsc::channel::<Outgoing>(capacity.max(1));
    tokio::spawn(async move {
        while let Some(outgoing) = inbox.recv().await {
            let fds: Vec<BorrowedFd<'_>> = outgoing.fds.iter().map(|fd| fd.as_fd()).collect();
            if let Err(e) = writer.send(outgoing.message, &fds).await {
                if e.is_disconnect() {
                    tracing::debug!("the executor closed its connection: {e}");
                } else {
                    tracing::warn!("cannot write to the executor: {e}");
                }
                return;
            }
        }
    });
    LinkSender { queue }
}
