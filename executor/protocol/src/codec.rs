//! Frames to bytes and back, without a socket.
//!
//! A frame is the message's length (u32, little endian), a byte that counts the descriptors sent along, and one prost message.
//! The descriptors travel with the frame's first byte. The kernel ends a read behind the data that carried descriptors, so they
//! belong to a frame that begins in the chunk of bytes they arrived with: the decoder keeps that association by stream position
//! and refuses everything else. Deliberately absent: sockets, and what the messages mean.

use crate::v1::{FromExecutor, from_executor};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// Longest message in bytes. A batch that could be longer must be cut by its sender; a peer that announces more is cut off before
/// anything is allocated for it.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Most descriptors that one frame carries (the kernel's own bound is 253).
pub const MAX_FDS: usize = 64;
/// Length and descriptor count.
pub const HEADER_BYTES: usize = 5;

/// Why frames can no longer be read or written. The connection is of no use after any of these but a time-out.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced, or we were given, a message above [`MAX_MESSAGE_BYTES`].
    #[error("a message of {0} bytes is longer than the {MAX_MESSAGE_BYTES} that a frame may hold")]
    TooLong(usize),
    /// The peer announced, or we were given, more than [`MAX_FDS`] descriptors.
    #[error("{0} descriptors are more than the {MAX_FDS} that a frame may carry")]
    TooManyFds(usize),
    /// The descriptors that came are not those that the frame counts.
    #[error("a frame counts {announced} descriptors, {arrived} came with it")]
    FdCount {
        /// What the frame's header says.
        announced: usize,
        /// What the socket delivered.
        arrived: usize,
    },
    /// Descriptors came with bytes that begin no frame which counts them.
    #[error("{0} descriptors came that belong to no frame")]
    StrayFds(usize),
    /// The kernel dropped descriptors: too many at once, or this process may open no more.
    #[error("the kernel dropped descriptors sent by the peer (limit of open files reached, or more than {MAX_FDS} at once)")]
    Truncated,
    /// The bytes are not a message of the expected kind.
    #[error("a frame of {length} bytes is not a message: {source}")]
    Decode {
        /// Length of the message.
        length: usize,
        /// What prost found.
        source: prost::DecodeError,
    },
    /// More list elements than any honest message has: decoded they would take far more memory than the frame.
    #[error("a frame has more than {0} fields")]
    TooManyFields(usize),
    /// The stream ended inside a frame.
    #[error("the connection ended inside a frame: {have} bytes of {want}")]
    Cut {
        /// Bytes that came.
        have: usize,
        /// Bytes that the frame has; the header's size while that is not complete.
        want: usize,
    },
    /// The socket failed.
    #[error("{operation} on the executor's socket: {source}")]
    Io {
        /// Which call.
        operation: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl FrameError {
    /// Whether this is only a time-out of the socket, after which the connection can still be used.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut))
    }

    /// Whether the peer is simply gone.
    #[must_use]
    pub fn is_disconnect(&self) -> bool {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
        match self {
            Self::Io { source, .. } => matches!(source.kind(), BrokenPipe | ConnectionReset | NotConnected),
            Self::Cut { .. } => true,
            _ => false,
        }
    }
}

/// Appends a frame to `buffer`. The first of its bytes must be sent together with exactly `fds` descriptors.
///
/// # Errors
/// When the message or the number of descriptors is above its limit; `buffer` is unchanged then.
pub fn encode_into(message: &impl Message, fds: usize, buffer: &mut BytesMut) -> Result<(), FrameError> {
    let length = message.encoded_len();
    let announced = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE_BYTES).ok_or(FrameError::TooLong(length))?;
    let count = u8::try_from(fds).ok().filter(|_| fds <= MAX_FDS).ok_or(FrameError::TooManyFds(fds))?;
    buffer.reserve(HEADER_BYTES + length);
    buffer.put_u32_le(announced);
    buffer.put_u8(count);
    message.encode_raw(buffer);
    Ok(())
}

/// A frame as bytes. See [`encode_into`].
///
/// # Errors
/// As [`encode_into`].
pub fn encode(message: &impl Message, fds: usize) -> Result<Bytes, FrameError> {
    let mut buffer = BytesMut::new();
    encode_into(message, fds, &mut buffer)?;
    Ok(buffer.freeze())
}

/// Bytes that a number takes at most: its key and ten digits to the base of 128.
const NUMBER_BYTES: usize = 11;
/// `FromExecutor.number`.
const NUMBER_FIELD: u32 = 15;

/// A message of an executor that has no number yet: it is encoded by whoever makes it, and numbered in the moment in which its place in
/// the order is decided.
#[derive(Debug)]
pub struct Draft(BytesMut);

impl Draft {
    /// Encodes a message without descriptors.
    ///
    /// # Errors
    /// When it is longer than a frame may be.
    pub fn new(message: from_executor::Message) -> Result<Self, FrameError> {
        let message = FromExecutor { number: 0, message: Some(message) };
        let length = message.encoded_len();
        if length + NUMBER_BYTES > MAX_MESSAGE_BYTES {
            return Err(FrameError::TooLong(length));
        }
        let mut buffer = BytesMut::with_capacity(HEADER_BYTES + length + NUMBER_BYTES);
        encode_into(&message, 0, &mut buffer)?;
        Ok(Self(buffer))
    }

    /// The frame, with this number behind what is encoded already: fields may come in any order.
    #[must_use]
    pub fn numbered(mut self, number: u64) -> Bytes {
        prost::encoding::uint64::encode(NUMBER_FIELD, &number, &mut self.0);
        let length = u32::try_from(self.0.len() - HEADER_BYTES).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        self.0.freeze()
    }

    /// The frame of a message that has no number.
    #[must_use]
    pub fn unnumbered(self) -> Bytes {
        self.0.freeze()
    }
}

/// One received frame.
#[derive(Debug)]
pub struct Frame {
    /// The message's bytes.
    pub message: Bytes,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl Frame {
    /// Reads the message.
    ///
    /// # Errors
    /// [`FrameError::Decode`] when the bytes are not an `M`.
    pub fn decode<M: Message + Default>(self) -> Result<(M, Vec<OwnedFd>), FrameError> {
        let length = self.message.len();
        let message = M::decode(self.message).map_err(|source| FrameError::Decode { length, source })?;
        Ok((message, self.fds))
    }
}

/// Descriptors and the stream positions (first, end) of the bytes that one read delivered together with them.
#[derive(Debug)]
struct FdBatch {
    first: u64,
    end: u64,
    fds: Vec<OwnedFd>,
}

/// Cuts a stream of bytes and descriptors into frames. Take all frames out with [`Decoder::next`] after each [`Decoder::push`]:
/// then what it holds is bounded by one frame and one read. After an error it must not be used again.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// Stream position of the buffer's first byte, which is where a frame begins.
    position: u64,
    batches: VecDeque<FdBatch>,
}

impl Decoder {
    /// At the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what one read delivered.
    ///
    /// # Errors
    /// [`FrameError::TooManyFds`] when more descriptors wait than one frame may carry, [`FrameError::StrayFds`] when
    /// descriptors come without a byte.
    pub fn push(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), FrameError> {
        if !fds.is_empty() {
            let waiting: usize = self.batches.iter().map(|b| b.fds.len()).sum::<usize>() + fds.len();
            if waiting > MAX_FDS {
                return Err(FrameError::TooManyFds(waiting));
            }
            if bytes.is_empty() {
                return Err(FrameError::StrayFds(fds.len()));
            }
            let first = self.position + self.buffer.len() as u64;
            self.batches.push_back(FdBatch { first, end: first + bytes.len() as u64, fds });
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next complete frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// Anything that is not a frame within its limits with its descriptors.
    #[expect(clippy::should_implement_trait, reason = "not an iterator: after None more can be pushed")]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.buffer.len() < HEADER_BYTES {
            return if self.buffer.is_empty() { self.no_batch_before(self.position).map(|()| None) } else { Ok(None) };
        }
        let length = (&self.buffer[..4]).get_u32_le() as usize;
        let announced = usize::from(self.buffer[4]);
        if length > MAX_MESSAGE_BYTES {
            return Err(FrameError::TooLong(length));
        }
        if announced > MAX_FDS {
            return Err(FrameError::TooManyFds(announced));
        }
        if self.buffer.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        let fds = if announced == 0 { Vec::new() } else { self.claim(announced)? };
        self.buffer.advance(HEADER_BYTES);
        let message = self.buffer.split_to(length).freeze();
        self.position += (HEADER_BYTES + length) as u64;
        self.no_batch_before(self.position)?;
        Ok(Some(Frame { message, fds }))
    }

    /// What to say when the stream ends now.
    ///
    /// # Errors
    /// [`FrameError::Cut`] inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let want = self.buffer.get(..4).map_or(0, |mut b| b.get_u32_le() as usize) + HEADER_BYTES;
        Err(FrameError::Cut { have: self.buffer.len(), want })
    }

    /// The descriptors of the frame at the buffer's beginning.
    fn claim(&mut self, announced: usize) -> Result<Vec<OwnedFd>, FrameError> {
        match self.batches.front() {
            Some(b) if b.first <= self.position && self.position < b.end && b.fds.len() == announced => {}
            Some(b) if b.first <= self.position => return Err(FrameError::FdCount { announced, arrived: b.fds.len() }),
            _ => return Err(FrameError::FdCount { announced, arrived: 0 }),
        }
        Ok(self.batches.pop_front().map(|b| b.fds).unwrap_or_default())
    }

    /// Refuses descriptors that came with bytes which are all consumed now.
    fn no_batch_before(&self, position: u64) -> Result<(), FrameError> {
        match self.batches.front() {
            Some(b) if b.end <= position => Err(FrameError::StrayFds(b.fds.len())),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
