//! An agent's checkpoint: the real log, with its encoding, on its machine's disk.
//!
//! Owns the two files, the note of the boot, and the process's death at any operation of a snapshot. A process that is killed while it
//! writes leaves a torn end, which the next life cuts. What a full disk means is that of the real shell: see `agent/src/checkpoint.rs`.

use crate::disk::Disk;
use crate::rng::Rng;
use smalti_agent_checkpoint::{Error, Log, Which};
use smalti_agent_core::Record;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

const BOOT: &str = "boot_id";
/// Room is taken in steps of this: small, as the logs of a run are.
const STEP: u64 = 2_048;
/// Kept free for what attempts may still have to say: as the real shell does it, in proportion to the step.
const ROOM: u64 = STEP / 4;
/// The same for each attempt.
const ROOM_PER_ATTEMPT: u64 = 128;
/// A snapshot has about this many operations.
const OPERATIONS: u64 = 7;
/// Of so many snapshots, one is where the process is killed.
const SNAPSHOTS_PER_CRASH: u64 = 12;

/// Why something was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The process was killed meanwhile.
    Killed,
    /// The disk is full.
    Full,
    /// What cannot be.
    Wrong(String),
}

/// After how many operations the process is killed, and the chance that decides what is left of the last one.
type Fuse = Rc<RefCell<Option<(u64, Rng)>>>;

/// The machine's disk as the log sees it.
#[derive(Debug, Clone)]
struct Files {
    disk: Rc<RefCell<Disk>>,
    fuse: Fuse,
}

const fn name_of(which: Which) -> &'static str {
    match which {
        Which::Log => "log",
        Which::Spare => "log.spare",
    }
}

impl Files {
    /// One operation: done, done in part, or not at all when the process is killed in it or has been.
    fn operate(&self, is_write: bool, act: impl FnOnce(&mut Disk) -> io::Result<()>) -> io::Result<()> {
        let mut fuse = self.fuse.borrow_mut();
        let mut disk = self.disk.borrow_mut();
        match &mut *fuse {
            None => act(&mut disk),
            Some((0, _)) => Err(io::ErrorKind::Interrupted.into()),
            Some((left @ 1, rng)) => {
                *left = 0;
                if rng.chance(60) && act(&mut disk).is_ok() && is_write && rng.chance(60) {
                    disk.tear(rng);
                }
                Err(io::ErrorKind::Interrupted.into())
            }
            Some((left, _)) => {
                *left -= 1;
                act(&mut disk)
            }
        }
    }
}

impl smalti_agent_checkpoint::Disk for Files {
    fn length(&mut self, which: Which) -> io::Result<Option<u64>> {
        let disk = self.disk.borrow();
        Ok(disk.read(name_of(which)).map(|bytes| bytes.len() as u64))
    }

    fn read(&mut self, which: Which, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let disk = self.disk.borrow();
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let bytes = disk.read(name_of(which)).and_then(|bytes| bytes.get(at..at + buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn reserve(&mut self, which: Which, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        self.operate(false, |disk| if disk.reserve(name_of(which), length) { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) })
    }

    fn write(&mut self, which: Which, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        self.operate(true, |disk| {
            if at + bytes.len() > disk.len(name_of(which)) {
                return Err(io::Error::other("a write beyond what was reserved"));
            }
            disk.write(name_of(which), at, bytes);
            Ok(())
        })
    }

    fn swap(&mut self) -> io::Result<()> {
        self.operate(false, |disk| {
            disk.swap(name_of(Which::Log), name_of(Which::Spare));
            Ok(())
        })
    }

    fn boot(&mut self) -> io::Result<Option<String>> {
        let disk = self.disk.borrow();
        Ok(disk.read(BOOT).map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
    }

    fn note_boot(&mut self, boot: &str) -> io::Result<()> {
        self.operate(false, |disk| {
            disk.replace(BOOT, boot.as_bytes());
            Ok(())
        })
    }

    fn name(&self, which: Which) -> String {
        name_of(which).to_owned()
    }

    fn step(&self) -> u64 {
        STEP
    }
}

/// What one agent has kept.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    log: Option<Log<Files>>,
    fuse: Fuse,
    has_room: bool,
}

impl Checkpoint {
    /// What an earlier life kept, and whether the machine has not been booted since.
    pub(crate) fn open(&mut self, disk: &Rc<RefCell<Disk>>, boot: u64) -> Result<(Vec<Record>, bool), Trouble> {
        *self.fuse.borrow_mut() = None;
        self.has_room = true;
        let files = Files { disk: Rc::clone(disk), fuse: Rc::clone(&self.fuse) };
        let opened = Log::open(files, &format!("boot-{boot}")).map_err(|e| Trouble::Wrong(e.to_string()))?;
        self.log = Some(opened.log);
        Ok((opened.records, opened.same_boot))
    }

    fn log(&mut self) -> Result<&mut Log<Files>, Trouble> {
        self.log.as_mut().ok_or_else(|| Trouble::Wrong("the checkpoint is not open".into()))
    }

    /// What an error of the log means.
    fn trouble(&self, e: &Error) -> Trouble {
        let killed = matches!(&*self.fuse.borrow(), Some((0, _)));
        match e.is_full() {
            _ if killed => Trouble::Killed,
            true => Trouble::Full,
            false => Trouble::Wrong(e.to_string()),
        }
    }

    /// Starts anew with these. Without calm, the process may be killed in it.
    pub(crate) fn snapshot(&mut self, records: Vec<Record>, calm: bool, rng: &mut Rng) -> Result<(), Trouble> {
        if !calm && rng.below(SNAPSHOTS_PER_CRASH) == 0 {
            *self.fuse.borrow_mut() = Some((rng.between(1, OPERATIONS), Rng::new(rng.below(u64::MAX))));
        }
        let result = self.log()?.snapshot(records);
        let result = result.map_err(|e| self.trouble(&e));
        // Also where the log does not care whether an operation has succeeded.
        if matches!(&*self.fuse.borrow(), Some((0, _))) {
            return Err(Trouble::Killed);
        }
        *self.fuse.borrow_mut() = None;
        result
    }

    /// One batch.
    pub(crate) fn append(&mut self, records: Vec<Record>) -> Result<(), Trouble> {
        let result = self.log()?.append(records);
        result.map_err(|e| self.trouble(&e))
    }

    /// Whether a snapshot would be shorter.
    pub(crate) fn wants_snapshot(&self) -> bool {
        self.log.as_ref().is_some_and(Log::wants_snapshot)
    }

    /// Whether there is room for more work, if that has changed.
    pub(crate) fn room_changed(&mut self, attempts: usize) -> Result<Option<bool>, Trouble> {
        let result = self.log()?.has_room(ROOM + ROOM_PER_ATTEMPT * attempts as u64);
        let has_room = result.map_err(|e| self.trouble(&e))?;
        Ok((std::mem::replace(&mut self.has_room, has_room) != has_room).then_some(has_room))
    }

    /// The process is gone.
    pub(crate) fn close(&mut self) {
        self.log = None;
    }
}
