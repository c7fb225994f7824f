//! Reads what tasks and items wrote: a task's two files, and the slots' files that a part's ledgers point into.
//!
//! Trusts nothing that an executor wrote: records are checked, and ranges end where the files do. Runs on threads that may block; deliberately absent: who asked, and sending.

use crate::sandbox::{Error as SandboxError, Sandboxes};
use smalti_executor_protocol::ledger::{RECORD_LEN, Record};
use smalti_types::{ItemSet, TaskKey};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes handed on at a time.
pub(crate) const CHUNK: usize = 64 << 10;
/// Records taken into memory for one read, at most.
const MOST_RECORDS: usize = 4 << 20;
/// Records of one ledger that are passed over because they are damaged, at most. An honest one has none, and a sparse file of zeros
/// would have more than anybody can read.
const MOST_DAMAGED: u32 = 1_024;
/// Most slots whose files are looked for.
const MOST_SLOTS: usize = 4096;
/// Bytes searched from the end for the last lines, at most.
const MOST_TAIL: u64 = 16 << 20;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stream {
    Out,
    Err,
}

impl Stream {
    /// Its name in a single task's sandbox.
    pub(crate) const fn task_file(self) -> &'static str {
        match self {
            Self::Out => "stdout",
            Self::Err => "stderr",
        }
    }

    /// The number that sandboxes know it by.
    pub(crate) const fn number(self) -> usize {
        match self {
            Self::Out => 0,
            Self::Err => 1,
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Err => "err",
        }
    }
}

/// Why a read ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file cannot be opened.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A file cannot be read.
    #[error("cannot read {file} of {key}: {source}")]
    Io {
        /// Whose.
        key: TaskKey,
        /// Which.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A ledger says what its slot's file does not have.
    #[error("the output of item {item} of {key} is damaged: its ledger names bytes that are not there")]
    Damaged {
        /// Whose.
        key: TaskKey,
        /// Which item.
        item: u64,
    },
    /// A ledger is no ledger.
    #[error("the output of {key} cannot be read: {file} has more than {MOST_DAMAGED} damaged records")]
    NoLedger {
        /// Whose.
        key: TaskKey,
        /// Which.
        file: String,
    },
    /// Whole records that are not what was written: nobody knows whose output they told of.
    #[error("the output of {key} is not complete: {records} records of {file} are damaged, and what they told of cannot be found")]
    Incomplete {
        /// Whose.
        key: TaskKey,
        /// Which file.
        file: String,
        /// How many.
        records: u32,
    },
    /// More records than one read may hold.
    #[error("{0} has more items than one read can give: ask for some of them")]
    TooMany(TaskKey),
    /// The reader has gone.
    #[error("the reader has gone")]
    Closed,
}

/// Takes what was read: item (for parts), stream, bytes.
pub(crate) type Sink<'a> = dyn FnMut(Option<u64>, Stream, &[u8]) -> Result<(), Error> + 'a;

/// One output file of a single task, read as it grows.
#[derive(Debug)]
pub(crate) struct TaskOutput {
    key: TaskKey,
    stream: Stream,
    file: Option<File>,
    /// In the file: others' outputs may lie before.
    at: u64,
    tail: Option<u64>,
}

impl TaskOutput {
    /// `tail`: begin that many lines before the end.
    pub(crate) const fn new(key: TaskKey, stream: Stream, tail: Option<u64>) -> Self {
        Self { key, stream, file: None, at: 0, tail }
    }

    /// Hands on what is new.
    pub(crate) fn poll(&mut self, sandboxes: &Sandboxes, sink: &mut Sink<'_>) -> Result<(), Error> {
        if self.file.is_none() {
            // It is there when the task has begun.
            let Some(output) = sandboxes.task_output(&self.key, self.stream.number())? else { return Ok(()) };
            self.at = output.from;
            self.file = Some(output.file);
        }
        let Some(file) = &self.file else { return Ok(()) };
        let failed = |source| Error::Io { key: self.key.clone(), file: self.stream.task_file().into(), source };
        let end = sandboxes.task_output_end(&self.key, self.stream.number(), file).map_err(failed)?;
        if let Some(lines) = self.tail.take() {
            self.at = tail_start(file, self.at, end, lines).map_err(failed)?;
        }
        let mut buffer = vec![0; CHUNK];
        while self.at < end {
            let most = buffer.len().min(usize::try_from(end - self.at).unwrap_or(CHUNK));
            let n = file.read_at(&mut buffer[..most], self.at).map_err(failed)?;
            if n == 0 {
                break;
            }
            self.at += n as u64;
            sink(None, self.stream, &buffer[..n])?;
        }
        Ok(())
    }
}

/// Where the last `lines` lines of what lies between `from` and `to` begin; an unfinished last line counts as one.
fn tail_start(file: &File, from: u64, to: u64, lines: u64) -> io::Result<u64> {
    let lowest = to.saturating_sub(MOST_TAIL).max(from);
    let (mut end, mut found, mut buffer) = (to, 0, vec![0; CHUNK]);
    while end > lowest {
        let start = end.saturating_sub(CHUNK as u64).max(lowest);
        let block = &mut buffer[..usize::try_from(end - start).unwrap_or(CHUNK)];
        file.read_exact_at(block, start)?;
        for (i, byte) in block.iter().enumerate().rev() {
            let position = start + i as u64;
            // The newline that ends the last line begins no other.
            if *byte == b'\n' && position + 1 < to {
                found += 1;
                if found == lines {
                    return Ok(position + 1);
                }
            }
        }
        end = start;
    }
    Ok(if lines == 0 { to } else { lowest })
}

/// Where one item's output lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    slot: u32,
    item: u64,
    attempt: u32,
    out: (u64, u64),
    err: (u64, u64),
}

impl Place {
    const fn new(slot: u32, r: &Record) -> Self {
        Self { slot, item: r.item, attempt: r.attempt, out: (r.out_offset, r.out_length), err: (r.err_offset, r.err_length) }
    }
}

/// One slot's files.
#[derive(Debug)]
struct SlotFiles {
    ledger: File,
    at: u64,
    damaged: u32,
    out: Option<File>,
    err: Option<File>,
}

/// The outputs of a part's items, read as they end.
#[derive(Debug)]
pub(crate) struct PartOutput {
    key: TaskKey,
    /// `None`: all.
    wanted: Option<ItemSet>,
    streams: Vec<Stream>,
    slots: BTreeMap<u32, SlotFiles>,
    /// Items handed on already.
    given: ItemSet,
}

impl PartOutput {
    pub(crate) fn new(key: TaskKey, wanted: Option<ItemSet>, streams: Vec<Stream>) -> Self {
        Self { key, wanted, streams, slots: BTreeMap::new(), given: ItemSet::default() }
    }

    /// Whether everything that was asked for has been handed on.
    pub(crate) fn is_complete(&self) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| self.given.contains_all(wanted))
    }

    /// At the end: whether something that was asked for may be missing because its record is damaged.
    pub(crate) fn verdict(&self) -> Result<(), Error> {
        match self.slots.iter().find(|(_, files)| files.damaged > 0 && !self.is_complete()) {
            None => Ok(()),
            Some((slot, files)) => {
                let file = format!("slot-{slot}.ledger");
                Err(Error::Incomplete { key: self.key.clone(), file, records: files.damaged })
            }
        }
    }

    /// Hands on the items that are new, in ascending order. An item with several attempts gives its last one.
    pub(crate) fn poll(&mut self, sandboxes: &Sandboxes, sink: &mut Sink<'_>) -> Result<(), Error> {
        self.find_slots(sandboxes)?;
        let mut fresh: BTreeMap<u64, Place> = BTreeMap::new();
        let slots: Vec<u32> = self.slots.keys().copied().collect();
        for slot in slots {
            self.read_ledger(slot, &mut fresh)?;
        }
        for place in fresh.values() {
            for stream in self.streams.clone() {
                self.give(sandboxes, place, stream, sink)?;
            }
            self.given.insert(place.item);
        }
        Ok(())
    }

    /// Slots' files appear one after another when the part starts.
    fn find_slots(&mut self, sandboxes: &Sandboxes) -> Result<(), Error> {
        let directory = sandboxes.task_directory(&self.key);
        let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
        for entry in entries.take(4 * MOST_SLOTS).flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|n| n.strip_prefix("slot-")?.strip_suffix(".ledger")?.parse::<u32>().ok());
            let room = self.slots.len() < MOST_SLOTS;
            let Some(slot) = number.filter(|slot| room && !self.slots.contains_key(slot)) else { continue };
            let ledger = sandboxes.open(&self.key, &format!("slot-{slot}.ledger"), false)?;
            self.slots.insert(slot, SlotFiles { ledger, at: 0, damaged: 0, out: None, err: None });
        }
        Ok(())
    }

    fn read_ledger(&mut self, slot: u32, fresh: &mut BTreeMap<u64, Place>) -> Result<(), Error> {
        let key = self.key.clone();
        let Some(files) = self.slots.get_mut(&slot) else { return Ok(()) };
        let mut buffer = vec![0; RECORD_LEN * 512];
        loop {
            let n = read_full(&files.ledger, &mut buffer, files.at).map_err(|source| Error::Io {
                key: key.clone(),
                file: format!("slot-{slot}.ledger"),
                source,
            })?;
            let (records, rest) = buffer[..n].as_chunks::<RECORD_LEN>();
            for bytes in records {
                // A damaged record names nothing that could be read: the others come first, and that is said at the end.
                let Some(record) = Record::decode(bytes) else {
                    files.damaged += 1;
                    if files.damaged > MOST_DAMAGED {
                        return Err(Error::NoLedger { key, file: format!("slot-{slot}.ledger") });
                    }
                    continue;
                };
                if self.wanted.as_ref().is_some_and(|w| !w.contains(record.item)) || self.given.contains(record.item) {
                    continue;
                }
                let place = Place::new(slot, &record);
                let entry = fresh.entry(record.item).or_insert(place);
                if place.attempt >= entry.attempt {
                    *entry = place;
                }
            }
            files.at += (n - rest.len()) as u64;
            if fresh.len() > MOST_RECORDS {
                return Err(Error::TooMany(key));
            }
            if n < buffer.len() {
                return Ok(());
            }
        }
    }

    fn give(&mut self, sandboxes: &Sandboxes, place: &Place, stream: Stream, sink: &mut Sink<'_>) -> Result<(), Error> {
        let (mut at, mut left) = match stream {
            Stream::Out => place.out,
            Stream::Err => place.err,
        };
        if left == 0 {
            return Ok(());
        }
        let name = format!("slot-{}.{}", place.slot, stream.suffix());
        let Some(files) = self.slots.get_mut(&place.slot) else { return Ok(()) };
        let file = match stream {
            Stream::Out => &mut files.out,
            Stream::Err => &mut files.err,
        };
        if file.is_none() {
            *file = Some(sandboxes.open(&self.key, &name, false)?);
        }
        let Some(file) = file else { return Ok(()) };
        let mut buffer = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(CHUNK));
            let n =
                file.read_at(&mut buffer[..most], at).map_err(|source| Error::Io { key: self.key.clone(), file: name.clone(), source })?;
            if n == 0 {
                return Err(Error::Damaged { key: self.key.clone(), item: place.item });
            }
            at = at.saturating_add(n as u64);
            left -= n as u64;
            sink(Some(place.item), stream, &buffer[..n])?;
        }
        Ok(())
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], at + have as u64)? {
            0 => break,
            n => have += n,
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Kind;
    use smalti_types::{Bytes, FrameworkId, TaskId};
    use std::io::Write;
    use std::path::Path;

    fn key() -> TaskKey {
        TaskKey { framework: FrameworkId::new("F").unwrap(), task: TaskId::new("t").unwrap(), attempt: 0 }
    }

    fn record(item: u64, attempt: u32, (out_offset, out_length): (u64, u64)) -> Vec<u8> {
        Record { item, attempt, exit_code: Some(0), out_offset, out_length, ..Record::default() }.encode().to_vec()
    }

    fn sandboxes(dir: &Path) -> (Sandboxes, std::path::PathBuf) {
        let (all, _) = Sandboxes::start(dir, Bytes::gib(1), &BTreeMap::new()).unwrap();
        let path = all.make(&key(), Kind::Part, false, false).unwrap();
        (all, path)
    }

    fn items(part: &mut PartOutput, all: &Sandboxes) -> Result<Vec<(u64, String)>, Error> {
        let mut got = Vec::new();
        part.poll(all, &mut |item, _, bytes| {
            got.push((item.unwrap(), String::from_utf8_lossy(bytes).into_owned()));
            Ok(())
        })?;
        Ok(got)
    }

    #[test]
    fn items_come_in_ascending_order_across_slots_and_the_last_attempt_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (all, path) = sandboxes(dir.path());
        std::fs::write(path.join("slot-0.out"), "zerotwo").unwrap();
        std::fs::write(path.join("slot-0.ledger"), [record(0, 0, (0, 4)), record(2, 0, (4, 3))].concat()).unwrap();
        std::fs::write(path.join("slot-1.out"), "onetwo again").unwrap();
        let mut ledger = [record(1, 0, (0, 3)), record(2, 1, (3, 9))].concat();
        let third = record(3, 0, (0, 0));
        ledger.extend(&third[..50]);
        std::fs::write(path.join("slot-1.ledger"), &ledger).unwrap();
        let mut part = PartOutput::new(key(), None, vec![Stream::Out, Stream::Err]);
        let expected = [(0, "zero"), (1, "one"), (2, "two again")].map(|(i, t)| (i, t.to_owned()));
        assert_eq!(items(&mut part, &all).unwrap(), expected);
        // The record that was half written becomes whole; nothing is given twice.
        ledger.extend(&third[50..]);
        ledger.extend(record(4, 0, (0, 3)));
        std::fs::write(path.join("slot-1.ledger"), &ledger).unwrap();
        assert_eq!(items(&mut part, &all).unwrap(), [(4, "one".to_owned())]);
        let mut some = PartOutput::new(key(), Some(ItemSet::range(1, 2)), vec![Stream::Out]);
        assert_eq!(items(&mut some, &all).unwrap(), [(1, "one".to_owned())]);
        assert!(some.is_complete());
    }

    #[test]
    fn a_ledger_that_lies_harms_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (all, path) = sandboxes(dir.path());
        std::fs::write(path.join("slot-0.out"), "x").unwrap();
        let mut flipped = record(0, 0, (0, 1));
        flipped[8] = 9;
        std::fs::write(path.join("slot-0.ledger"), [flipped, record(1, 0, (u64::MAX, 1))].concat()).unwrap();
        let mut part = PartOutput::new(key(), None, vec![Stream::Out]);
        assert!(matches!(items(&mut part, &all), Err(Error::Damaged { item: 1, .. } | Error::Io { .. })));
        std::fs::write(path.join("slot-0.ledger"), record(u64::MAX, 0, (0, 1))).unwrap();
        items(&mut PartOutput::new(key(), None, vec![Stream::Out]), &all).unwrap();
    }

    #[test]
    fn a_damaged_record_is_told_after_what_can_be_read_unless_nobody_misses_it() {
        let dir = tempfile::tempdir().unwrap();
        let (all, path) = sandboxes(dir.path());
        std::fs::write(path.join("slot-0.out"), "zeroonetwo").unwrap();
        let mut ledger = [record(0, 0, (0, 4)), record(1, 0, (4, 3)), record(2, 0, (7, 3))].concat();
        ledger[RECORD_LEN + 30] ^= 1;
        std::fs::write(path.join("slot-0.ledger"), &ledger).unwrap();
        let mut part = PartOutput::new(key(), None, vec![Stream::Out]);
        assert_eq!(items(&mut part, &all).unwrap(), [(0, "zero".to_owned()), (2, "two".to_owned())]);
        let told = part.verdict().unwrap_err().to_string();
        assert!(told.contains("not complete: 1 records of slot-0.ledger are damaged"), "{told}");
        let mut others = PartOutput::new(key(), Some([0, 2].into_iter().collect()), vec![Stream::Out]);
        items(&mut others, &all).unwrap();
        others.verdict().unwrap();
        // A record that is only begun is none yet.
        std::fs::write(path.join("slot-0.ledger"), &ledger[..RECORD_LEN + 30]).unwrap();
        let mut part = PartOutput::new(key(), None, vec![Stream::Out]);
        items(&mut part, &all).unwrap();
        part.verdict().unwrap();
    }

    #[test]
    fn what_is_no_ledger_ends_the_read_and_not_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let (all, path) = sandboxes(dir.path());
        let ledger = path.join("slot-0.ledger");
        // Four tebibytes of zeros takes no room on the disk.
        std::fs::File::create(&ledger).unwrap().set_len(1 << 42).unwrap();
        let read = || items(&mut PartOutput::new(key(), None, vec![Stream::Out]), &all);
        assert!(matches!(read(), Err(Error::NoLedger { .. })));
        std::fs::remove_file(&ledger).unwrap();
        nix::unistd::mkfifo(&ledger, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(), Err(Error::Sandbox(_))));
        std::fs::remove_file(&ledger).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &ledger).unwrap();
        assert!(matches!(read(), Err(Error::Sandbox(_))));
        std::fs::remove_file(&ledger).unwrap();
        std::fs::write(path.join("slot-4294967296.ledger"), record(1, 0, (0, 1))).unwrap();
        std::fs::write(path.join("slot-x.ledger"), record(1, 0, (0, 1))).unwrap();
        assert_eq!(read().unwrap(), []);
        // A range that runs over the end of the numbers.
        std::fs::write(path.join("slot-0.out"), "x").unwrap();
        std::fs::write(&ledger, record(1, u32::MAX, (1, u64::MAX))).unwrap();
        assert!(matches!(read(), Err(Error::Damaged { item: 1, .. })));
    }

    #[test]
    fn the_last_lines_of_a_file_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (all, _) = Sandboxes::start(dir.path(), Bytes::gib(1), &BTreeMap::new()).unwrap();
        let text: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
        // Another task's output lies before.
        for (key, text) in [(TaskKey { attempt: 7, ..key() }, "before\nit"), (key(), &format!("{text}end"))] {
            all.make(&key, Kind::Task, false, false).unwrap();
            File::from(all.begin_task(&key).unwrap()[0].try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
            all.ended(&key);
        }
        let tail = |n| {
            let mut got = Vec::new();
            TaskOutput::new(key(), Stream::Out, n)
                .poll(&all, &mut |_, _, b| {
                    got.extend(b);
                    Ok(())
                })
                .unwrap();
            String::from_utf8(got).unwrap()
        };
        assert_eq!(tail(Some(0)), "");
        assert_eq!(tail(Some(1)), "end");
        assert_eq!(tail(Some(3)), "line 19998\nline 19999\nend");
        assert_eq!(tail(Some(15_000)).lines().count(), 15_000);
        assert_eq!(tail(Some(u64::MAX)), tail(None));
    }
}
