//! Where a guest's stdout and stderr go: two files of a single task, written through at once, or the segments of an array
//! slot, buffered, with the ledger beside them.
//!
//! Owns the files and the order in which they are written: an item's output before its ledger record. The agent makes the files
//! and passes them on; nothing here knows a name. Does not count limits: that is [`crate::streams`].

use smalti_executor_protocol::ledger::{RECORD_LEN, Record};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of one segment that wait in memory.
const BUFFER_BYTES: usize = 64 << 10;
/// An item's output reaches the file at the latest when the item has run this long, so that it can be followed live.
const FLUSH_AFTER: Duration = Duration::from_millis(50);

/// Which of a guest's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Out,
    Err,
}

/// Takes a guest's output.
pub(crate) trait Sink: std::fmt::Debug + Send + Sync {
    /// Takes all of `bytes`.
    ///
    /// # Errors
    /// What the file system said; the guest ends with it.
    fn write(&self, channel: Channel, bytes: &[u8]) -> io::Result<()>;
}

/// The files of a single task.
#[derive(Debug)]
pub(crate) struct TaskFiles {
    out: File,
    err: File,
}

impl TaskFiles {
    /// Over two new files.
    pub(crate) const fn new(out: File, err: File) -> Self {
        Self { out, err }
    }
}

impl Sink for TaskFiles {
    fn write(&self, channel: Channel, bytes: &[u8]) -> io::Result<()> {
        match channel {
            Channel::Out => (&self.out).write_all(bytes),
            Channel::Err => (&self.err).write_all(bytes),
        }
    }
}

/// A file that only grows, with the bytes not yet written.
#[derive(Debug)]
struct Segment {
    file: File,
    /// Bytes in the file.
    written: u64,
    buffer: Vec<u8>,
}

impl Segment {
    /// Goes on at the end of what is there, less what no whole record of `unit` bytes is: in class `process` the executor before
    /// may have died while it wrote.
    fn new(file: File, unit: u64) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, written: length - length % unit, buffer: Vec::new() })
    }
    /// Where the next byte goes.
    const fn end(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        if bytes.len() < BUFFER_BYTES {
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        self.file.write_all_at(bytes, self.written)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
    /// Written at its offset, so that a flush which failed half-way can be repeated.
    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.file.write_all_at(&self.buffer, self.written)?;
            self.written += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// The item that runs now: where its output began.
#[derive(Debug, Clone, Copy)]
struct Current {
    since: Instant,
    out: u64,
    err: u64,
}

#[derive(Debug)]
struct Segments {
    out: Segment,
    err: Segment,
    ledger: Segment,
    current: Option<Current>,
}

/// The segments of one slot in one array part.
#[derive(Debug)]
pub(crate) struct SlotOutput {
    segments: Mutex<Segments>,
}

impl SlotOutput {
    /// Over three files, new ones or those that an executor before has left.
    ///
    /// # Errors
    /// When they cannot be asked for their length.
    pub(crate) fn new(out: File, err: File, ledger: File) -> io::Result<Self> {
        let (out, err) = (Segment::new(out, 1)?, Segment::new(err, 1)?);
        let segments = Segments { out, err, ledger: Segment::new(ledger, RECORD_LEN as u64)?, current: None };
        Ok(Self { segments: Mutex::new(segments) })
    }

    fn lock(&self) -> MutexGuard<'_, Segments> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An item begins.
    pub(crate) fn begin(&self, now: Instant) {
        let mut s = self.lock();
        s.current = Some(Current { since: now, out: s.out.end(), err: s.err.end() });
    }

    /// An item ended: `record` gets its offsets and joins the ledger behind the output.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub(crate) fn end(&self, mut record: Record) -> io::Result<()> {
        let mut s = self.lock();
        let (out, err) = (s.out.end(), s.err.end());
        if let Some(current) = s.current.take() {
            record.out_offset = current.out;
            record.out_length = out - current.out;
            record.err_offset = current.err;
            record.err_length = err - current.err;
        }
        if s.ledger.buffer.len() + RECORD_LEN > BUFFER_BYTES {
            flush(&mut s)?;
        }
        s.ledger.append(&record.encode())
    }

    /// Writes everything out, outputs before the records that point to them.
    ///
    /// # Errors
    /// What the file system said. Nothing is lost; the flush can be repeated.
    pub(crate) fn flush(&self) -> io::Result<()> {
        flush(&mut self.lock())
    }

    /// Writes the output of an item out that has run for a while. A failure shows at the next flush.
    pub(crate) fn tick(&self, now: Instant) {
        let mut s = self.lock();
        if s.current.is_some_and(|c| now.saturating_duration_since(c.since) >= FLUSH_AFTER) {
            let _ = s.out.flush().and_then(|()| s.err.flush());
        }
    }
}

fn flush(s: &mut Segments) -> io::Result<()> {
    s.out.flush()?;
    s.err.flush()?;
    s.ledger.flush()
}

impl Sink for SlotOutput {
    fn write(&self, channel: Channel, bytes: &[u8]) -> io::Result<()> {
        let mut s = self.lock();
        match channel {
            Channel::Out => s.out.append(bytes),
            Channel::Err => s.err.append(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot_output(directory: &std::path::Path, slot: u32) -> SlotOutput {
        let file = |kind: &str| File::create_new(directory.join(format!("slot-{slot}.{kind}"))).expect("made");
        SlotOutput::new(file("out"), file("err"), file("ledger")).expect("made")
    }

    #[test]
    fn the_next_executor_of_an_array_goes_on_behind_whole_records() {
        let temp = tempfile::tempdir().expect("a directory");
        let write = |output: &SlotOutput, item: u64| {
            output.begin(Instant::now());
            output.write(Channel::Out, b"abc").expect("written");
            output.end(Record { item, ..Record::default() }).expect("ended");
            output.flush().expect("flushed");
        };
        write(&slot_output(temp.path(), 0), 7);
        // One that died in the middle: output without a record, and half a record.
        for (name, bytes) in [("slot-0.out", 5), ("slot-0.ledger", RECORD_LEN / 2)] {
            let mut file = File::options().append(true).open(temp.path().join(name)).expect("open");
            file.write_all(&vec![b'x'; bytes]).expect("written");
        }
        let open = |kind: &str| File::options().write(true).open(temp.path().join(format!("slot-0.{kind}"))).expect("open");
        write(&SlotOutput::new(open("out"), open("err"), open("ledger")).expect("made"), 8);
        let ledger = std::fs::read(temp.path().join("slot-0.ledger")).expect("read");
        let records: Vec<Record> =
            ledger.chunks_exact(RECORD_LEN).map(|r| Record::decode(r.try_into().expect("96 bytes")).expect("a record")).collect();
        assert_eq!(records.iter().map(|r| (r.item, r.out_offset, r.out_length)).collect::<Vec<_>>(), [(7, 0, 3), (8, 8, 3)]);
    }

    #[test]
    fn output_comes_before_its_record_and_offsets_are_right() {
        let temp = tempfile::tempdir().expect("a directory");
        let output = slot_output(temp.path(), 3);
        let length = |name: &str| std::fs::metadata(temp.path().join(name)).expect("there").len();
        for item in 0..3_u64 {
            output.begin(Instant::now());
            output.write(Channel::Out, &[b'a'; 10]).expect("written");
            output.write(Channel::Err, b"e").expect("written");
            output.end(Record { item, ..Record::default() }).expect("recorded");
        }
        assert_eq!(length("slot-3.out"), 0, "buffered");
        output.flush().expect("flushed");
        assert_eq!((length("slot-3.out"), length("slot-3.err"), length("slot-3.ledger")), (30, 3, 288));
        let ledger = std::fs::read(temp.path().join("slot-3.ledger")).expect("there");
        let last = Record::decode(ledger[192..].try_into().expect("96 bytes")).expect("a record");
        assert_eq!((last.item, last.out_offset, last.out_length, last.err_offset, last.err_length), (2, 20, 10, 2, 1));
    }

    #[test]
    fn a_large_write_keeps_the_order_and_a_long_item_is_flushed() {
        let temp = tempfile::tempdir().expect("a directory");
        let output = slot_output(temp.path(), 0);
        let now = Instant::now();
        output.begin(now);
        output.write(Channel::Out, b"x").expect("written");
        output.write(Channel::Out, &[b'y'; 2 * BUFFER_BYTES]).expect("written");
        output.write(Channel::Out, b"z").expect("written");
        output.tick(now);
        let read = || std::fs::read(temp.path().join("slot-0.out")).expect("there");
        assert_eq!(read().len(), 1 + 2 * BUFFER_BYTES);
        output.tick(now + FLUSH_AFTER);
        assert_eq!(read().len(), 2 + 2 * BUFFER_BYTES);
        assert_eq!((read()[0], read()[1], read()[1 + 2 * BUFFER_BYTES]), (b'x', b'y', b'z'));
    }
}
