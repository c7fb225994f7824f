//! Frames over a unix socket with blocking calls: the executor's side.
//!
//! Owns one end of the socket each way. Deliberately absent: locking (several threads that write share a [`Writer`] behind a
//! mutex of their own) and reconnecting.

use crate::codec::{Decoder, FrameError, MAX_FDS, encode_into};
use bytes::BytesMut;
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Bytes asked for with one read: enough for hundreds of small frames in one call.
const READ_BYTES: usize = 64 << 10;
/// A write buffer above this is given back after use, so that one large frame does not stay in memory for ever.
const KEEP_BYTES: usize = 256 << 10;

/// What one read delivered.
#[derive(Debug)]
pub struct Chunk {
    /// Number of bytes at the beginning of the buffer; 0 at the end of the stream.
    pub bytes: usize,
    /// Descriptors that came with them.
    pub fds: Vec<OwnedFd>,
}

/// One `recvmsg`. Received descriptors are closed on exec. A non-blocking socket gives `WouldBlock`.
///
/// # Errors
/// What the kernel said, or [`FrameError::Truncated`].
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Chunk, FrameError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.map_err(|e| FrameError::Io { operation: "recvmsg", source: e.into() })?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(FrameError::Truncated);
    }
    Ok(Chunk { bytes: received.bytes, fds })
}

/// One `sendmsg` of `bytes`, with `fds` on the first of them. Gives the number of bytes taken; the descriptors went with them.
/// Never raises SIGPIPE. A non-blocking socket gives `WouldBlock`.
///
/// # Errors
/// What the kernel said, or [`FrameError::TooManyFds`].
pub fn transmit(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, FrameError> {
    send(socket, bytes, fds, SendFlags::NOSIGNAL)
}

/// As [`transmit`], and never waits, whatever the socket: when there is no room it gives `WouldBlock`.
///
/// # Errors
/// As [`transmit`].
pub fn transmit_now(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, FrameError> {
    send(socket, bytes, fds, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> Result<usize, FrameError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(FrameError::TooManyFds(fds.len()));
    }
    loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(|e| FrameError::Io { operation: "sendmsg", source: e.into() }),
        }
    }
}

/// Returns when there is something to read, or with a time-out.
fn wait(socket: impl AsFd, within: Duration) -> Result<(), FrameError> {
    let failed = |source: std::io::Error| FrameError::Io { operation: "poll", source };
    let within = Timespec::try_from(within).map_err(|e| failed(std::io::Error::other(e)))?;
    loop {
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&within)) {
            Ok(0) => return Err(failed(std::io::ErrorKind::TimedOut.into())),
            Ok(_) => return Ok(()),
            // Nothing depends on how long it is exactly.
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
}

/// Receives frames.
#[derive(Debug)]
pub struct Reader {
    stream: UnixStream,
    decoder: Decoder,
    buffer: Box<[u8]>,
}

impl Reader {
    /// Reads from `stream`, at the beginning of a frame.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::new(), buffer: vec![0; READ_BYTES].into() }
    }

    /// The next message with its descriptors; `None` when the peer closed the connection between two frames.
    ///
    /// # Errors
    /// A frame that breaks the rules, or a failing socket. After [`FrameError::is_timeout`] it may be called again.
    pub fn recv<M: Message + Default>(&mut self) -> Result<Option<(M, Vec<OwnedFd>)>, FrameError> {
        self.recv_within(None)
    }

    /// As [`Self::recv`], and gives an error that [`FrameError::is_timeout`] when nothing comes for this long.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub fn recv_within<M: Message + Default>(&mut self, within: Option<Duration>) -> Result<Option<(M, Vec<OwnedFd>)>, FrameError> {
        loop {
            if let Some(frame) = self.decoder.next()? {
                return frame.decode().map(Some);
            }
            if let Some(within) = within {
                wait(&self.stream, within)?;
            }
            let chunk = receive(&self.stream, &mut self.buffer)?;
            if chunk.bytes == 0 {
                self.decoder.finish()?;
                return Ok(None);
            }
            self.decoder.push(&self.buffer[..chunk.bytes], chunk.fds)?;
        }
    }

    /// The socket, for time-outs and shutdown.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

/// Sends frames.
#[derive(Debug)]
pub struct Writer {
    stream: UnixStream,
    buffer: BytesMut,
}

impl Writer {
    /// Writes to `stream`, at the beginning of a frame.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Sends one message with descriptors, whole.
    ///
    /// # Errors
    /// A message or a number of descriptors above its limit (nothing is sent then), or a failing socket. After a failure of the
    /// socket the stream may end inside a frame: the connection is of no more use.
    pub fn send(&mut self, message: &impl Message, fds: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        self.buffer.clear();
        encode_into(message, fds.len(), &mut self.buffer)?;
        let mut sent = transmit(&self.stream, &self.buffer, fds)?;
        while sent < self.buffer.len() {
            sent += transmit(&self.stream, &self.buffer[sent..], &[])?;
        }
        if self.buffer.capacity() > KEEP_BYTES {
            self.buffer = BytesMut::new();
        }
        Ok(())
    }

    /// The socket, for time-outs and shutdown.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

/// Both directions of one connection.
///
/// # Errors
/// When the socket cannot be duplicated.
pub fn split(stream: UnixStream) -> std::io::Result<(Reader, Writer)> {
    let other = stream.try_clone()?;
    Ok((Reader::new(stream), Writer::new(other)))
}
