//! The executor's side of the connection to the agent, for writing: shared by all slots.
//!
//! Owns the writer. A connection that fails once is given up: messages are dropped then (an array's ledgers say the same),
//! and the reader sees the end of the stream. Reconnecting belongs to a later life of this file.

use smalti_executor_protocol::Writer;
use smalti_executor_protocol::v1::{FromExecutor, from_executor::Message};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Sends messages to the agent, one frame each, whole and in the order of the calls.
#[derive(Debug, Default)]
pub(crate) struct Link {
    writer: Mutex<Option<Writer>>,
}

impl Link {
    /// From now on to this agent.
    pub(crate) fn connect(&self, writer: Writer) {
        *self.lock() = Some(writer);
    }
    /// From now on to nobody.
    pub(crate) fn disconnect(&self) {
        *self.lock() = None;
    }
    fn lock(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one message. Blocks while the agent does not read: a slow agent slows the slots down, and nothing piles up.
    pub(crate) fn send(&self, message: Message) {
        self.send_with(message, &[]);
    }

    /// Sends one message with descriptors, as [`Link::send`].
    pub(crate) fn send_with(&self, message: Message, fds: &[BorrowedFd<'_>]) {
        let mut guard = self.lock();
        let Some(writer) = guard.as_mut() else { return };
        if let Err(e) = writer.send(&FromExecutor { number: 0, message: Some(message) }, fds) {
            eprintln!("smalti-executor: the connection to the agent is lost: {e}");
            let _ = writer.stream().shutdown(Shutdown::Both);
            *guard = None;
        }
    }
}
