//! An executor's broker, from the agent's side: told about the executor and its task.
//!
//! Owns the connection. The broker is the executor's launcher, which stays outside for this: it makes the executor's sockets in this
//! machine's network namespace, see the executor's `broker`. It is told its rules before the executor is told its task, so they are
//! there at the task's first call.

use smalti_executor_protocol::v1::{BrokerRules, Notifications, ToBroker, to_broker::Message};
use smalti_executor_protocol::{FrameError, blocking, encode};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// One executor's. Dropping it ends the broker.
#[derive(Debug)]
pub struct Broker {
    stream: UnixStream,
}

impl Broker {
    /// Over the connection to a launcher that stays.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream })
    }

    /// Hands it the executor's notifications.
    ///
    /// # Errors
    /// When it is gone.
    pub fn attend(&self, notifications: BorrowedFd<'_>) -> Result<(), FrameError> {
        self.say(Message::Notifications(Notifications {}), &[notifications])
    }

    /// Tells it what the task may do.
    ///
    /// # Errors
    /// When it is gone.
    pub fn allow(&self, rules: BrokerRules) -> Result<(), FrameError> {
        self.say(Message::Rules(rules), &[])
    }

    /// The few messages of a broker's life fit into the socket's buffer: one that does not is not waited for.
    fn say(&self, message: Message, fds: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        let bytes = encode(&ToBroker { message: Some(message) }, fds.len())?;
        let sent = blocking::transmit(self.stream.as_fd(), &bytes, fds)?;
        if sent == bytes.len() {
            return Ok(());
        }
        Err(FrameError::Io { operation: "telling the broker", source: io::Error::other("it does not listen") })
    }
}
