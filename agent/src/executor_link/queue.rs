//! A bounded queue in front of an executor's socket, so that the event loop never waits for an executor.
//!
//! What goes in at once is not queued: an executor that waits hears of its task without another turn of a thread of the agent's.
//! A full queue means that the executor does not read: the caller decides what that is worth (the agent ends the executor).

use super::{LinkWriter, Sent};
use smalti_executor_protocol::v1::{ToExecutor, to_executor};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Mutex, mpsc};

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

/// What waits for the executor to read.
#[expect(clippy::large_enum_variant, reason = "nearly all are messages")]
#[derive(Debug)]
enum Waiting {
    Message(ToExecutor, Vec<Arc<OwnedFd>>),
    /// The rest of what has gone out in part.
    Rest,
}

/// Puts messages into the queue. Clones share it; when the last one is dropped, what is queued is still sent.
#[derive(Debug, Clone)]
pub struct LinkSender {
    queue: mpsc::Sender<Waiting>,
    writer: Arc<Mutex<LinkWriter>>,
    /// Messages that were queued and are not written.
    behind: Arc<AtomicUsize>,
}

impl LinkSender {
    /// Sends a message at once, where nothing waits and there is room for it, or queues it, or neither.
    ///
    /// # Errors
    /// When the queue is full or the connection gone.
    pub fn try_send(&self, outgoing: impl Into<Outgoing>) -> Result<(), SendError> {
        let Outgoing { message, fds } = outgoing.into();
        let message = ToExecutor { message: Some(message) };
        if self.queue.is_closed() {
            return Err(SendError::Closed);
        }
        // Held until what is left is queued, so that nothing gets between the parts of a message.
        let mut now = if self.behind.load(Ordering::Acquire) == 0 { self.writer.try_lock().ok() } else { None };
        let waiting = match now.as_mut().map(|writer| writer.send_now(&message, &fds)) {
            Some(Ok(Sent::Whole)) => return Ok(()),
            Some(Ok(Sent::Part)) => Waiting::Rest,
            // An error is met again by the task that empties the queue, and ends the connection there.
            Some(Ok(Sent::Nothing) | Err(_)) | None => Waiting::Message(message, fds),
        };
        self.behind.fetch_add(1, Ordering::AcqRel);
        self.queue.try_send(waiting).map_err(|e| {
            self.behind.fetch_sub(1, Ordering::AcqRel);
            match e {
                mpsc::error::TrySendError::Full(_) => SendError::Full,
                mpsc::error::TrySendError::Closed(_) => SendError::Closed,
            }
        })
    }

    /// Queues a message, waiting for room.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&self, outgoing: impl Into<Outgoing>) -> Result<(), SendError> {
        let Outgoing { message, fds } = outgoing.into();
        self.behind.fetch_add(1, Ordering::AcqRel);
        self.queue.send(Waiting::Message(ToExecutor { message: Some(message) }, fds)).await.map_err(|_| {
            self.behind.fetch_sub(1, Ordering::AcqRel);
            SendError::Closed
        })
    }
}

pub(super) fn start(writer: LinkWriter, capacity: usize) -> LinkSender {
    let (queue, mut inbox) = mpsc::channel::<Waiting>(capacity.max(1));
    let (writer, behind) = (Arc::new(Mutex::new(writer)), Arc::new(AtomicUsize::new(0)));
    let (own, written) = (writer.clone(), behind.clone());
    tokio::spawn(async move {
        while let Some(waiting) = inbox.recv().await {
            let mut writer = own.lock().await;
            let sent = match waiting {
                Waiting::Message(message, fds) => {
                    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
                    writer.send_whole(&message, &fds).await
                }
                Waiting::Rest => writer.finish().await,
            };
            drop(writer);
            written.fetch_sub(1, Ordering::AcqRel);
            if let Err(e) = sent {
                if e.is_disconnect() {
                    tracing::debug!("the executor closed its connection: {e}");
                } else {
                    tracing::warn!("cannot write to the executor: {e}");
                }
                return;
            }
        }
    });
    LinkSender { queue, writer, behind }
}
