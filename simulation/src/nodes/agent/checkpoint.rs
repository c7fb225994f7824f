//! An agent's checkpoint: the real log, with its encoding, on its machine's disk.
//!
//! Owns the two files and the note of the boot. A process that is killed while it writes leaves a torn end, which the next life cuts.

use crate::disk::Disk;
use smalti_agent_checkpoint::{Log, Which};
use smalti_agent_core::Record;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

const BOOT: &str = "boot_id";
/// How far beyond its end a file seems to reach: room that was taken, and reads as zeros.
const ROOM: usize = 512;

/// The machine's disk as the log sees it.
#[derive(Debug, Clone)]
struct Files(Rc<RefCell<Disk>>);

const fn name_of(which: Which) -> &'static str {
    match which {
        Which::Log => "log",
        Which::Spare => "log.spare",
    }
}

impl smalti_agent_checkpoint::Disk for Files {
    fn length(&mut self, which: Which) -> io::Result<Option<u64>> {
        let disk = self.0.borrow();
        Ok(disk.read(name_of(which)).map(|bytes| (bytes.len() + ROOM) as u64))
    }

    fn read(&mut self, which: Which, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let disk = self.0.borrow();
        let bytes = disk.read(name_of(which)).unwrap_or_default();
        let at = usize::try_from(at).map_err(io::Error::other)?;
        for (i, byte) in buffer.iter_mut().enumerate() {
            *byte = bytes.get(at + i).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn reserve(&mut self, which: Which, _length: u64) -> io::Result<()> {
        self.0.borrow_mut().write(name_of(which), 0, &[]);
        Ok(())
    }

    fn write(&mut self, which: Which, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        self.0.borrow_mut().write(name_of(which), at, bytes);
        Ok(())
    }

    fn swap(&mut self) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.swap(name_of(Which::Log), name_of(Which::Spare));
        Ok(())
    }

    fn boot(&mut self) -> io::Result<Option<String>> {
        let disk = self.0.borrow();
        Ok(disk.read(BOOT).map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
    }

    fn note_boot(&mut self, boot: &str) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.remove(BOOT);
        disk.append(BOOT, boot.as_bytes());
        disk.sync();
        Ok(())
    }

    fn name(&self, which: Which) -> String {
        name_of(which).to_owned()
    }
}

/// What one agent has kept.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    log: Option<Log<Files>>,
    appended: usize,
}

impl Checkpoint {
    /// What an earlier life kept, and whether the machine has not been booted since.
    pub(crate) fn open(&mut self, disk: &Rc<RefCell<Disk>>, boot: u64) -> Result<(Vec<Record>, bool), String> {
        let opened = Log::open(Files(Rc::clone(disk)), &format!("boot-{boot}")).map_err(|e| e.to_string())?;
        self.log = Some(opened.log);
        Ok((opened.records, opened.same_boot))
    }

    /// Starts anew with these.
    pub(crate) fn snapshot(&mut self, records: Vec<Record>) -> Result<(), String> {
        self.appended = 0;
        self.log.as_mut().map_or(Ok(()), |log| log.snapshot(records)).map_err(|e| e.to_string())
    }

    /// One batch.
    pub(crate) fn append(&mut self, records: Vec<Record>) -> Result<(), String> {
        self.appended += records.len();
        self.log.as_mut().map_or(Ok(()), |log| log.append(records)).map_err(|e| e.to_string())
    }

    /// Whether a snapshot would be shorter.
    pub(crate) const fn wants_snapshot(&self) -> bool {
        self.appended > 2_000
    }

    /// The process is gone.
    pub(crate) fn close(&mut self) {
        self.log = None;
    }
}
