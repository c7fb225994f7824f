//! The log: records are appended in batches, and now and then a snapshot takes the place of all of them.
//!
//! Owns the place in the file, its room, and the rules of what is read at the start. A batch is one frame and one write. Nothing is
//! synced: a batch survives the end of the process; what the end of the machine takes with it is told by the boot that was noted.

use crate::disk::{Disk, Which};
use crate::frame::{self, END_LEN, FRAME_HEAD, HEADER_LEN, Header};
use crate::record::{RecordError, decode, encode_into};
use smalti_agent_core::Record;
use smalti_types::ExecutorId;
use std::collections::BTreeMap;
use std::io;

/// A snapshot is due when the log is longer than this many of the disk's steps, …
const SNAPSHOT_AFTER_STEPS: u64 = 4;
/// … and than this many times the last one.
const SNAPSHOT_TIMES: u64 = 4;
/// Frames of a snapshot carry about this much.
const SNAPSHOT_FRAME: usize = 1 << 20;

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk failed.
    #[error("cannot {operation} the checkpoint log {name}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Which file.
        name: String,
        /// What the disk said.
        source: io::Error,
    },
    /// It was written by a later version.
    #[error("the checkpoint log {name} was written by a later version of smalti ({what}): {WAY_BACK}")]
    Later {
        /// Which file.
        name: String,
        /// What is later.
        what: String,
    },
    /// Something is wrong that no crash can have done.
    #[error(
        "the checkpoint log {name} is damaged at byte {at}: {what}. It was not torn by a crash, and what it says cannot be guessed: {WAY_OUT}"
    )]
    Damaged {
        /// Which file.
        name: String,
        /// Where.
        at: u64,
        /// How that is known.
        what: String,
    },
}

/// What somebody can do about a log of a later version.
const WAY_BACK: &str = "start that version again, or let it end its tasks (SIGTERM) before going back";
/// What somebody can do about a damaged log.
const WAY_OUT: &str = "check the disk, then move the log's directory away and start the agent again. It then ends the executors that \
     it finds, and its tasks are reported as lost";

/// A log with what was in it.
#[derive(Debug)]
pub struct Opened<D> {
    /// The log. Nothing can be appended before a snapshot was written.
    pub log: Log<D>,
    /// What it said.
    pub records: Vec<Record>,
    /// Whether the machine has not been booted since.
    pub same_boot: bool,
    /// What was cut, for people.
    pub cut: Option<String>,
}

/// The log.
#[derive(Debug)]
pub struct Log<D> {
    disk: D,
    boot: String,
    generation: u64,
    /// Where the next frame goes.
    at: u64,
    /// Room that the files have.
    reserved: u64,
    spare_reserved: u64,
    /// Length of the last snapshot.
    snapshot: u64,
    buffer: Vec<u8>,
    heard: BTreeMap<ExecutorId, u64>,
}

impl<D: Disk> Log<D> {
    /// Reads what is there. `boot` names the present boot of the machine.
    ///
    /// # Errors
    /// When the disk fails, or the log is of a later version or damaged; the words say what to do.
    pub fn open(mut disk: D, boot: &str) -> Result<Opened<D>, Error> {
        let noted =
            disk.boot().map_err(|source| Error::Io { operation: "read the boot noted for", name: disk.name(Which::Log), source })?;
        let same_boot = noted.as_deref() == Some(boot);
        let log = read_all(&mut disk, Which::Log)?;
        let (is_there, bytes) = (log.is_some(), log.unwrap_or_default());
        let spare = read_all(&mut disk, Which::Spare)?.unwrap_or_default();
        let name = disk.name(Which::Log);
        let spare_generation = match frame::read_header(&spare) {
            Header::Good(generation) => generation,
            Header::Later(_) | Header::Bad => 0,
        };
        let (mut records, mut generation) = (Vec::new(), spare_generation);
        let cut = match frame::read_header(&bytes) {
            Header::Good(of_log) => {
                generation = generation.max(of_log);
                read(&name, &bytes, of_log, same_boot, &mut records)?
            }
            Header::Later(version) => return Err(Error::Later { name, what: format!("version {version} of the file") }),
            // After a boot, what was not synced may be gone.
            Header::Bad if !same_boot => (!bytes.is_empty()).then(|| format!("{name} was lost when the machine went down")),
            // The boot is noted once the first log lies in its place.
            Header::Bad if !is_there => {
                return Err(Error::Damaged {
                    name,
                    at: 0,
                    what: "it is not there, although it was written since the machine was started".into(),
                });
            }
            Header::Bad => return Err(Error::Damaged { name, at: 0, what: "it does not begin as a checkpoint log".into() }),
        };
        let log = Self {
            disk,
            boot: boot.to_owned(),
            generation,
            at: 0,
            reserved: bytes.len() as u64,
            spare_reserved: spare.len() as u64,
            snapshot: 0,
            buffer: Vec::new(),
            heard: BTreeMap::new(),
        };
        Ok(Opened { log, records, same_boot, cut })
    }

    /// Appends a batch: one write. Of several [`Record::Heard`] of an executor only the last counts.
    ///
    /// # Errors
    /// When the disk fails. [`io::ErrorKind::StorageFull`]: nothing was written, and it can be tried again.
    pub fn append(&mut self, records: impl IntoIterator<Item = Record>) -> Result<(), Error> {
        self.buffer.clear();
        self.buffer.resize(FRAME_HEAD, 0);
        for record in records {
            match record {
                Record::Heard { executor, number } => drop(self.heard.insert(executor, number)),
                record => encode_into(record, &mut self.buffer),
            }
        }
        while let Some((executor, number)) = self.heard.pop_first() {
            encode_into(Record::Heard { executor, number }, &mut self.buffer);
        }
        if self.buffer.len() == FRAME_HEAD {
            return Ok(());
        }
        self.check_length()?;
        self.take_room(self.buffer.len() as u64 + END_LEN as u64)?;
        frame::seal(&mut self.buffer, 0, self.generation, self.at);
        let length = self.buffer.len() as u64;
        self.buffer.resize(self.buffer.len() + END_LEN, 0);
        self.disk.write(Which::Log, self.at, &self.buffer).map_err(|source| self.failed("append to", source))?;
        self.at += length;
        // A batch of unusual size must not keep its memory.
        if self.buffer.capacity() > 4 * SNAPSHOT_FRAME {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    fn check_length(&self) -> Result<(), Error> {
        if self.buffer.len() > frame::MAX_FRAME {
            return Err(self.failed("append to", io::Error::other(format!("a batch of {} bytes", self.buffer.len()))));
        }
        Ok(())
    }

    /// Makes sure that this many bytes more can be written, whatever happens to the rest of the disk. False: there is no room.
    ///
    /// # Errors
    /// When the disk fails in another way.
    pub fn has_room(&mut self, bytes: u64) -> Result<bool, Error> {
        match self.take_room(bytes) {
            Ok(()) => Ok(true),
            Err(Error::Io { source, .. }) if is_full(&source) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn take_room(&mut self, bytes: u64) -> Result<(), Error> {
        let wanted = self.at.saturating_add(bytes);
        if wanted <= self.reserved {
            return Ok(());
        }
        let wanted = wanted.next_multiple_of(self.disk.step());
        self.disk.reserve(Which::Log, wanted).map_err(|source| self.failed("take room for", source))?;
        self.reserved = wanted;
        Ok(())
    }

    /// Whether a snapshot would make the log much shorter.
    #[must_use]
    pub fn wants_snapshot(&self) -> bool {
        self.at > (SNAPSHOT_AFTER_STEPS * self.disk.step()).max(self.snapshot.saturating_mul(SNAPSHOT_TIMES))
    }

    /// Bytes in use.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.at
    }

    /// Writes these records to the spare file and lets that take the log's place. The first one notes the boot, too.
    ///
    /// # Errors
    /// When the disk fails; the log is then as it was.
    pub fn snapshot(&mut self, records: impl IntoIterator<Item = Record>) -> Result<(), Error> {
        let generation = self.generation + 1;
        let mut at = HEADER_LEN as u64;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(&frame::header(generation));
        let mut written = 0_u64;
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            let start = buffer.len();
            buffer.resize(start + FRAME_HEAD, 0);
            for record in records.by_ref() {
                encode_into(record, &mut buffer);
                if buffer.len() - start >= SNAPSHOT_FRAME {
                    break;
                }
            }
            frame::seal(&mut buffer, start, generation, at);
            at += (buffer.len() - start) as u64;
            if buffer.len() >= SNAPSHOT_FRAME {
                self.write_spare(written, &buffer)?;
                written += buffer.len() as u64;
                buffer.clear();
            }
        }
        buffer.resize(buffer.len() + END_LEN, 0);
        self.write_spare(written, &buffer)?;
        self.disk.swap().map_err(|source| self.failed("swap", source))?;
        std::mem::swap(&mut self.reserved, &mut self.spare_reserved);
        let first = self.at == 0;
        (self.generation, self.at, self.snapshot) = (generation, at, at);
        if first {
            let boot = self.boot.clone();
            self.disk.note_boot(&boot).map_err(|source| self.failed("note the boot for", source))?;
        }
        // The swap may have given up the old file, and the next snapshot must find room even on a full disk.
        self.spare_reserved = self.disk.length(Which::Spare).map_err(|source| self.failed("ask for the length of", source))?.unwrap_or(0);
        let step = self.disk.step();
        let wanted = step.max(at.next_multiple_of(step));
        if self.spare_reserved < wanted && self.disk.reserve(Which::Spare, wanted).is_ok() {
            self.spare_reserved = wanted;
        }
        self.buffer = buffer;
        // The snapshot counts, whether or not there is room for what follows it: whoever appends hears of that.
        self.has_room(step / 2).map(drop)
    }

    fn write_spare(&mut self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let wanted = at + bytes.len() as u64;
        let failed = |disk: &D, operation, source| Error::Io { operation, name: disk.name(Which::Spare), source };
        if wanted > self.spare_reserved {
            let wanted = wanted.next_multiple_of(self.disk.step());
            self.disk.reserve(Which::Spare, wanted).map_err(|source| failed(&self.disk, "take room for", source))?;
            self.spare_reserved = wanted;
        }
        self.disk.write(Which::Spare, at, bytes).map_err(|source| failed(&self.disk, "write", source))
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Io { operation, name: self.disk.name(Which::Log), source }
    }

    /// The disk.
    pub const fn disk(&mut self) -> &mut D {
        &mut self.disk
    }
}

impl Error {
    /// Whether the disk is full: it can be tried again.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// `None`: there is no such file.
fn read_all<D: Disk>(disk: &mut D, which: Which) -> Result<Option<Vec<u8>>, Error> {
    let failed = |disk: &D, source| Error::Io { operation: "read", name: disk.name(which), source };
    let Some(length) = disk.length(which).map_err(|source| failed(disk, source))? else { return Ok(None) };
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    disk.read(which, 0, &mut bytes).map_err(|source| failed(disk, source))?;
    Ok(Some(bytes))
}

/// Reads the frames of a log. Gives what was cut.
fn read(name: &str, bytes: &[u8], generation: u64, same_boot: bool, records: &mut Vec<Record>) -> Result<Option<String>, Error> {
    let mut at = HEADER_LEN;
    while let Some(carried) = frame::frame_at(bytes, generation, at) {
        decode_all(name, at, carried, records)?;
        at += FRAME_HEAD + carried.len();
    }
    if let Some(good) = frame::next_good(bytes, generation, at) {
        if same_boot {
            let what = format!("what lies there is no record, but a good one follows at byte {good}");
            return Err(Error::Damaged { name: name.to_owned(), at: at as u64, what });
        }
        return Ok(Some(format!("{name} was cut at byte {at}: the machine went down before all of it was on the disk")));
    }
    let torn = !frame::is_end(bytes, at);
    Ok(torn.then(|| format!("{name} was cut at byte {at}, behind its last good record: a crash tore what was being written there")))
}

fn decode_all(name: &str, at: usize, mut carried: &[u8], records: &mut Vec<Record>) -> Result<(), Error> {
    while !carried.is_empty() {
        match decode(&mut carried) {
            Ok(record) => records.push(record),
            Err(RecordError::Later(version)) => {
                return Err(Error::Later { name: name.to_owned(), what: format!("a record of version {version} at byte {at}") });
            }
            Err(e @ RecordError::Bad(_)) => return Err(Error::Damaged { name: name.to_owned(), at: at as u64, what: e.to_string() }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
