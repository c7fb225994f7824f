//! stdin, stdout and stderr as WASI streams: stdin is a part of a file read with `pread`, the outputs go to a
//! [`crate::output::Sink`] within a limit over both.
//!
//! Owns the byte counts of one guest, the output limit and the fact that an input was shorter than promised. Reads and writes
//! are plain system calls on the slot's own thread, so they are in its cgroup. Nothing here waits for a peer.

use crate::limits::Budget;
use crate::output::{Channel, Sink};
use crate::unpack::Unpacked;
use bytes::{Bytes, BytesMut};
use smalti_types::Packing;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

/// Bytes that one guest reads ahead from stdin at most.
const READ_AHEAD: usize = 64 << 10;
/// Bytes that a guest may write in one call; WASI's `write_zeroes` allocates as many.
const WRITE_PERMIT: usize = 64 << 10;

/// What one guest reads and writes, counted, and which of the limits it met.
#[derive(Debug)]
pub(crate) struct Meters {
    read: AtomicU64,
    written: AtomicU64,
    /// The part of `written` that went to stdout and stderr.
    output: AtomicU64,
    /// How often standard streams were used: tells them from files, which others count.
    standard_calls: AtomicU64,
    output_limit: u64,
    output_limit_hit: AtomicBool,
    input_failed: OnceLock<String>,
    output_failed: OnceLock<String>,
}

impl Meters {
    /// `output_limit` in bytes, over stdout and stderr together.
    pub(crate) const fn new(output_limit: u64) -> Self {
        Self {
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            output: AtomicU64::new(0),
            standard_calls: AtomicU64::new(0),
            output_limit,
            output_limit_hit: AtomicBool::new(false),
            input_failed: OnceLock::new(),
            output_failed: OnceLock::new(),
        }
    }
    /// Bytes read from stdin and files.
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
    /// Bytes written to stdout, stderr and files.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
    /// Bytes came from a file.
    pub(crate) fn add_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }
    /// Bytes went to a file.
    pub(crate) fn add_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }
    /// Rises whenever a standard stream is used.
    pub(crate) fn standard_calls(&self) -> u64 {
        self.standard_calls.load(Ordering::Relaxed)
    }
    /// The limit, if it was hit.
    pub(crate) fn output_limit_hit(&self) -> Option<u64> {
        self.output_limit_hit.load(Ordering::Relaxed).then_some(self.output_limit)
    }
    /// Why stdin could not be read to its end, if so.
    pub(crate) fn input_failed(&self) -> Option<&str> {
        self.input_failed.get().map(String::as_str)
    }
    /// Why something that was printed could not be kept, if so.
    pub(crate) fn output_failed(&self) -> Option<&str> {
        self.output_failed.get().map(String::as_str)
    }
}

/// Ends a guest that writes more than it may.
#[derive(Debug, thiserror::Error)]
#[error("the output limit of {0} bytes was reached")]
struct OutputLimitReached(u64);

/// Ends a guest whose input is not what was promised.
#[derive(Debug, thiserror::Error)]
#[error("stdin could not be read")]
struct InputFailed;

/// Ends a guest whose output nobody can keep: it is not the guest's to handle, and what it made of the error would look like its own fault.
#[derive(Debug, thiserror::Error)]
#[error("what it printed could not be kept")]
struct OutputFailed;

/// What a guest reads on stdin: bytes `offset..offset + length` of a file, unpacked.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) packing: Packing,
}

/// The next bytes of it as it is; none at its end.
fn next(source: &mut Source) -> Result<BytesMut, String> {
    let want = usize::try_from(source.length).unwrap_or(usize::MAX).min(READ_AHEAD);
    if want == 0 {
        return Ok(BytesMut::new());
    }
    let mut buffer = BytesMut::zeroed(want);
    loop {
        match source.file.read_at(&mut buffer, source.offset) {
            Ok(0) => return Err(format!("the input ends {} bytes before its promised length", source.length)),
            Ok(n) => {
                buffer.truncate(n);
                source.offset += n as u64;
                source.length -= n as u64;
                return Ok(buffer);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(format!("the input cannot be read: {e}")),
        }
    }
}

#[derive(Debug)]
enum Reading {
    Plain(Source),
    Packed(Unpacked),
    Over,
}

#[derive(Debug)]
struct ReadState {
    source: Reading,
    ahead: Bytes,
}

/// stdin. All handles of a guest share one position.
#[derive(Debug, Clone)]
pub(crate) struct Stdin {
    state: Arc<Mutex<ReadState>>,
    meters: Arc<Meters>,
}

impl Stdin {
    /// `None`: end of file at once. What unpacking takes counts against `budget`.
    pub(crate) fn new(source: Option<Source>, meters: Arc<Meters>, budget: &Arc<Budget>) -> Self {
        let source = match source {
            None => Reading::Over,
            Some(source) => match Unpacked::new(source.packing, (source.file.clone(), source.offset, source.length), budget) {
                Some(unpacked) => Reading::Packed(unpacked),
                None => Reading::Plain(source),
            },
        };
        Self { state: Arc::new(Mutex::new(ReadState { source, ahead: Bytes::new() })), meters }
    }

    /// Reads ahead. Leaves `ahead` empty at the end.
    fn fill(&self, state: &mut ReadState) -> StreamResult<()> {
        let read = match &mut state.source {
            Reading::Over => return Ok(()),
            Reading::Plain(source) => next(source),
            Reading::Packed(unpacked) => {
                let mut buffer = BytesMut::zeroed(READ_AHEAD);
                unpacked.read(&mut buffer).map(|n| buffer.split_to(n))
            }
        };
        let buffer = match read {
            Ok(buffer) => buffer,
            Err(why) => return self.fail(why),
        };
        if buffer.is_empty() {
            // A decoder's memory is given back.
            state.source = Reading::Over;
        }
        self.meters.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        state.ahead = buffer.freeze();
        Ok(())
    }

    fn fail(&self, why: String) -> StreamResult<()> {
        let _ = self.meters.input_failed.set(why);
        Err(StreamError::Trap(InputFailed.into()))
    }
}

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Stdin {
    /// For preview 3, which is off.
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(tokio::io::empty())
    }
    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Stdin {
    async fn ready(&mut self) {}
}

#[async_trait]
impl InputStream for Stdin {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        self.meters.standard_calls.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.ahead.is_empty() {
            self.fill(&mut state)?;
        }
        if state.ahead.is_empty() {
            return Err(StreamError::Closed);
        }
        let n = size.min(state.ahead.len());
        Ok(state.ahead.split_to(n))
    }
}

/// stdout or stderr.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    channel: Channel,
    sink: Arc<dyn Sink>,
    meters: Arc<Meters>,
}

impl Output {
    pub(crate) const fn new(channel: Channel, sink: Arc<dyn Sink>, meters: Arc<Meters>) -> Self {
        Self { channel, sink, meters }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    /// For preview 3, which is off.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

#[async_trait]
impl OutputStream for Output {
    /// What is within the limit is kept; the first byte beyond it ends the guest.
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.meters.standard_calls.fetch_add(1, Ordering::Relaxed);
        let limit = self.meters.output_limit;
        let room = limit.saturating_sub(self.meters.output.load(Ordering::Relaxed));
        let n = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
        if let Err(e) = self.sink.write(self.channel, &bytes[..n]) {
            let _ = self.meters.output_failed.set(format!("what it printed could not be kept on the agent: {e}"));
            return Err(StreamError::Trap(OutputFailed.into()));
        }
        self.meters.output.fetch_add(n as u64, Ordering::Relaxed);
        self.meters.add_written(n as u64);
        if n < bytes.len() {
            self.meters.output_limit_hit.store(true, Ordering::Relaxed);
            return Err(StreamError::Trap(OutputLimitReached(limit).into()));
        }
        Ok(())
    }
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }
    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_PERMIT)
    }
    /// Never waits: spares the general version's two waits for readiness.
    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.write(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Write};

    #[derive(Debug, Default)]
    struct Memory(Mutex<Vec<u8>>);
    impl Sink for Memory {
        fn write(&self, _: Channel, bytes: &[u8]) -> io::Result<()> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(())
        }
    }

    #[derive(Debug)]
    struct Full;
    impl Sink for Full {
        fn write(&self, _: Channel, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    #[test]
    fn a_full_disk_of_the_agent_ends_the_guest_with_its_own_reason() {
        let meters = Arc::new(Meters::new(5));
        let mut out = Output::new(Channel::Out, Arc::new(Full), meters.clone());
        assert!(
            matches!(out.write(Bytes::from_static(b"abc")), Err(StreamError::Trap(_))),
            "not an error that the guest could take for its own"
        );
        assert!(meters.output_failed().is_some_and(|why| why.contains("could not be kept")));
        assert_eq!(meters.written(), 0);
    }

    #[test]
    fn the_output_limit_counts_both_channels() {
        let (sink, meters) = (Arc::new(Memory::default()), Arc::new(Meters::new(5)));
        let mut out = Output::new(Channel::Out, sink.clone(), meters.clone());
        let mut err = Output::new(Channel::Err, sink.clone(), meters.clone());
        assert!(out.write(Bytes::from_static(b"abc")).is_ok());
        assert!(meters.output_limit_hit().is_none());
        assert!(matches!(err.write(Bytes::from_static(b"defg")), Err(StreamError::Trap(_))));
        assert_eq!(meters.output_limit_hit(), Some(5));
        assert_eq!(meters.written(), 5);
        assert_eq!(*sink.0.lock().expect("not poisoned"), b"abcde");
    }

    #[test]
    fn stdin_is_the_promised_part_and_a_shorter_file_is_a_failure() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"0123456789").expect("written");
        let file = Arc::new(file);
        let (meters, budget) = (Arc::new(Meters::new(0)), Arc::new(Budget::new(0)));
        let mut stdin =
            Stdin::new(Some(Source { file: file.clone(), offset: 2, length: 5, packing: Packing::Plain }), meters.clone(), &budget);
        let mut other = stdin.clone();
        assert_eq!(stdin.read(3).expect("read"), "234");
        assert_eq!(other.read(100).expect("read"), "56");
        assert!(matches!(stdin.read(1), Err(StreamError::Closed)));
        assert_eq!(meters.read(), 5);
        assert!(meters.input_failed().is_none());

        let mut short = Stdin::new(Some(Source { file, offset: 8, length: 5, packing: Packing::Plain }), meters.clone(), &budget);
        assert_eq!(short.read(100).expect("read"), "89");
        assert!(matches!(short.read(1), Err(StreamError::Trap(_))));
        assert!(meters.input_failed().is_some_and(|m| m.contains("3 bytes")));
        assert!(matches!(Stdin::new(None, meters, &budget).read(1), Err(StreamError::Closed)));
    }
}
