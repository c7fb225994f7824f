//! The agent's end of the connection to an executor: frames over a unix socket, without blocking a thread.
//!
//! Owns the socket. What an executor says is untrusted: frames are bounded in length and in what they decode to, an executor may send
//! no descriptors (the kernel drops what it attaches, a frame that counts some is an error) but with its first words, where that is
//! asked for, one message is held at a time, and one that floods is read more slowly. Deliberately absent: what messages and their
//! numbers mean, and when to connect again (that is [`crate::launcher::Launcher::adopt`]).

mod budget;
mod queue;
pub(crate) mod scan;
pub(crate) mod several;

pub use queue::{LinkSender, Outgoing, SendError};

use budget::Budget;
use bytes::BytesMut;
use smalti_executor_protocol::v1::{FromExecutor, ToExecutor, from_executor, to_executor};
use smalti_executor_protocol::{Decoder, FrameError, blocking, encode_into};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Bytes asked for with one read.
const READ_BYTES: usize = 64 << 10;
/// Longest path that fits a unix socket's address, less its terminating zero.
const MAX_SOCKET_PATH: usize = 107;
/// A write buffer above this is given back after use.
const KEEP_BYTES: usize = 256 << 10;

/// Frames that crossed a connection, for figures and tests.
#[derive(Debug, Default)]
pub struct FrameCounts {
    sent: AtomicU64,
    received: AtomicU64,
}

impl FrameCounts {
    /// Frames to the executor.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Frames from the executor.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// One message of an executor.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// Which of the messages that must not be missed, from 1; 0: it may be missed.
    pub number: u64,
    /// What it says.
    pub message: from_executor::Message,
}

/// Both directions of a connection to an executor.
#[derive(Debug)]
pub struct ExecutorLink {
    reader: LinkReader,
    writer: LinkWriter,
}

impl ExecutorLink {
    /// Uses a connected socket, at the beginning of a frame.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        let stream = Arc::new(stream);
        let counts = Arc::new(FrameCounts::default());
        let reader = LinkReader {
            stream: stream.clone(),
            decoder: Decoder::new(),
            buffer: vec![0; READ_BYTES].into(),
            counts: counts.clone(),
            budget: Budget::new(Instant::now()),
            pause: None,
            taken: 0,
        };
        Self { reader, writer: LinkWriter { stream, buffer: BytesMut::new(), sent: 0, counts } }
    }

    /// Connects to a socket by its path, which may be longer than an address.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn connect(path: &Path) -> std::io::Result<Self> {
        if path.as_os_str().len() <= MAX_SOCKET_PATH {
            return UnixStream::connect(path).await.map(Self::new);
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(std::io::Error::other(format!("{} is no path of a socket", path.display())));
        };
        let directory = File::open(parent)?;
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        UnixStream::connect(short).await.map(Self::new)
    }

    /// Who listened on the other end: the supervisor's pid, as this process sees it, and its user id.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn peer(&self) -> std::io::Result<(i32, u32)> {
        let peer = nix::sys::socket::getsockopt(&*self.reader.stream, nix::sys::socket::sockopt::PeerCredentials)?;
        Ok((peer.pid(), peer.uid()))
    }

    /// Sends one message. See [`LinkWriter::send`].
    ///
    /// # Errors
    /// As [`LinkWriter::send`].
    pub async fn send(&mut self, message: to_executor::Message, fds: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        self.writer.send(message, fds).await
    }

    /// The next message. See [`LinkReader::recv`].
    ///
    /// # Errors
    /// As [`LinkReader::recv`].
    pub async fn recv(&mut self) -> Result<Option<Said>, FrameError> {
        self.reader.recv().await
    }

    /// The next message with the descriptors that came with it. See [`LinkReader::recv_with_fds`].
    ///
    /// # Errors
    /// As [`LinkReader::recv_with_fds`].
    pub async fn recv_with_fds(&mut self) -> Result<Option<(Said, Vec<OwnedFd>)>, FrameError> {
        self.reader.recv_with_fds().await
    }

    /// The two directions, for two tasks.
    #[must_use]
    pub fn split(self) -> (LinkReader, LinkWriter) {
        (self.reader, self.writer)
    }

    /// Counters that stay valid after a split.
    #[must_use]
    pub fn counts(&self) -> Arc<FrameCounts> {
        self.reader.counts.clone()
    }
}

/// Receives messages of an executor.
#[derive(Debug)]
pub struct LinkReader {
    stream: Arc<UnixStream>,
    decoder: Decoder,
    buffer: Box<[u8]>,
    counts: Arc<FrameCounts>,
    budget: Budget,
    /// Nothing is taken before this: it spoke too much.
    pause: Option<tokio::time::Instant>,
    taken: usize,
}

impl LinkReader {
    /// Bytes of the frame that the last message came in.
    #[must_use]
    pub fn last_length(&self) -> usize {
        self.taken
    }

    /// The next message; `None` when the executor closed the connection between two frames. May be cancelled without loss.
    /// A frame without a message that this version knows is skipped. One that has spoken too much is listened to later.
    ///
    /// # Errors
    /// A frame that breaks the rules, or a failing socket: the connection is of no more use.
    pub async fn recv(&mut self) -> Result<Option<Said>, FrameError> {
        loop {
            if let Some(until) = self.pause {
                tokio::time::sleep_until(until).await;
                self.pause = None;
            }
            if let Some(frame) = self.decoder.next()? {
                self.counts.received.fetch_add(1, Ordering::Relaxed);
                self.taken = frame.message.len();
                // Before the next one, not after this one: nothing is lost when this call is cancelled.
                self.pause = self.budget.pay(Instant::now(), self.taken).map(|wait| tokio::time::Instant::now() + wait);
                scan::check(&frame.message)?;
                let (FromExecutor { number, message }, _) = frame.decode()?;
                match message {
                    Some(message) => return Ok(Some(Said { number, message })),
                    None => continue,
                }
            }
            self.stream.readable().await.map_err(|source| FrameError::Io { operation: "waiting to read", source })?;
            match self.stream.try_read(&mut self.buffer) {
                Ok(0) => return self.decoder.finish().map(|()| None),
                Ok(n) => self.decoder.push(&self.buffer[..n], Vec::new())?,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(source) => return Err(FrameError::Io { operation: "read", source }),
            }
        }
    }
}

impl LinkReader {
    /// As [`LinkReader::recv`], with descriptors: for an executor's first words, before it has run a guest. Later ones get nothing
    /// through that way.
    ///
    /// # Errors
    /// As [`LinkReader::recv`].
    pub async fn recv_with_fds(&mut self) -> Result<Option<(Said, Vec<OwnedFd>)>, FrameError> {
        let io = |e| match e {
            FrameError::Io { source, .. } => source,
            other => std::io::Error::other(other),
        };
        loop {
            while let Some(frame) = self.decoder.next()? {
                self.counts.received.fetch_add(1, Ordering::Relaxed);
                self.taken = frame.message.len();
                scan::check(&frame.message)?;
                let (FromExecutor { number, message }, fds) = frame.decode()?;
                if let Some(message) = message {
                    return Ok(Some((Said { number, message }, fds)));
                }
            }
            let (stream, buffer) = (&self.stream, &mut self.buffer);
            let received = stream.async_io(Interest::READABLE, || blocking::receive(stream.as_fd(), buffer).map_err(io)).await;
            let chunk = received.map_err(|source| FrameError::Io { operation: "recvmsg", source })?;
            if chunk.bytes == 0 {
                return self.decoder.finish().map(|()| None);
            }
            self.decoder.push(&self.buffer[..chunk.bytes], chunk.fds)?;
        }
    }
}

/// How much of a message has gone out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Whole,
    /// The rest is in the writer.
    Part,
    Nothing,
}

/// Sends messages to an executor.
#[derive(Debug)]
pub struct LinkWriter {
    stream: Arc<UnixStream>,
    buffer: BytesMut,
    /// How much of the buffer has gone out.
    sent: usize,
    counts: Arc<FrameCounts>,
}

impl LinkWriter {
    /// Sends one message with descriptors, whole. Must not be cancelled: the stream would end inside a frame. Where that can
    /// happen, use [`LinkWriter::into_queue`].
    ///
    /// # Errors
    /// A message or a number of descriptors above its limit (nothing is sent then), or a failing socket.
    pub async fn send(&mut self, message: to_executor::Message, fds: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        self.send_whole(&ToExecutor { message: Some(message) }, fds).await
    }

    async fn send_whole(&mut self, message: &ToExecutor, fds: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        self.begin(message, fds.len())?;
        self.sent = self.transmit(0, fds).await?;
        self.finish().await
    }

    fn begin(&mut self, message: &ToExecutor, fds: usize) -> Result<(), FrameError> {
        self.buffer.clear();
        self.sent = 0;
        encode_into(message, fds, &mut self.buffer)
    }

    /// Sends what goes in at once.
    fn send_now(&mut self, message: &ToExecutor, fds: &[Arc<OwnedFd>]) -> Result<Sent, FrameError> {
        self.begin(message, fds.len())?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.sent = match blocking::transmit_now(self.stream.as_fd(), &self.buffer, &fds) {
            Err(e) if e.is_timeout() => return Ok(Sent::Nothing),
            sent => sent?,
        };
        if self.sent < self.buffer.len() {
            return Ok(Sent::Part);
        }
        self.written();
        Ok(Sent::Whole)
    }

    /// Sends the rest of a message.
    async fn finish(&mut self) -> Result<(), FrameError> {
        while self.sent < self.buffer.len() {
            self.sent += self.transmit(self.sent, &[]).await?;
        }
        self.written();
        Ok(())
    }

    fn written(&mut self) {
        self.counts.sent.fetch_add(1, Ordering::Relaxed);
        if self.buffer.capacity() > KEEP_BYTES {
            self.buffer = BytesMut::new();
            self.sent = 0;
        }
    }

    /// A bounded queue in front of this writer, with a task that empties it.
    #[must_use]
    pub fn into_queue(self, capacity: usize) -> LinkSender {
        queue::start(self, capacity)
    }

    async fn transmit(&self, from: usize, fds: &[BorrowedFd<'_>]) -> Result<usize, FrameError> {
        let io = |e| match e {
            FrameError::Io { source, .. } => source,
            other => std::io::Error::other(other),
        };
        self.stream
            .async_io(Interest::WRITABLE, || blocking::transmit(self.stream.as_fd(), &self.buffer[from..], fds).map_err(io))
            .await
            .map_err(|source| FrameError::Io { operation: "sendmsg", source })
    }
}

#[cfg(test)]
mod tests;
