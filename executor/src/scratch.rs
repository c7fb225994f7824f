//! The writable disk of one slot: as new for each guest.
//!
//! The agent passes the root of a file system of the right size that has one empty directory, `disk`. The guest sees that
//! directory only. After each guest it is looked whether anything changed (by the kernel's counters of free blocks and files,
//! and by the directory's own time of change); only then `disk` is replaced by a new one and the old one removed, because a
//! directory that was once large never becomes small again.
//!
//! Owns that emptying, the copying of read-only files that lie below the disk's path, and the question whether the disk is
//! full. Deliberately absent: the limit itself, which is the file system's.

mod tree;

use crate::directories::View;
use crate::failure::Failure;
use crate::instance::Ended;
use rustix::fs::{Mode, OFlags, StatVfs, fstat, fstatvfs, mkdirat, openat, renameat};
use rustix::io::Errno;
use smalti_types::Bytes;
use smalti_types::task_state::Reason;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use wasmtime_wasi::filesystem::WasiFilesystemCtx;

/// What the guest sees, below the root.
const GUEST_DIRECTORY: &str = "disk";
/// Its last one, while it is removed.
const OLD_DIRECTORY: &str = "old";
/// Free blocks that a file system of many blocks may keep to itself when it says that it is full.
const LAST_BLOCKS: u64 = 8;
/// … but not more than this part of all.
const LAST_PART: u64 = 64;

/// Free blocks and files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    blocks: u64,
    inodes: u64,
}

/// A directory as it was when its guest came.
struct Open {
    directory: OwnedFd,
    changed: (i64, i64),
    context: WasiFilesystemCtx,
}

enum State {
    /// `disk` is there and empty.
    Empty,
    /// A guest has it, or had it and did nothing.
    Open(Open),
    /// It could not be emptied: no other guest may have it.
    Spoilt(String),
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").field("root", &self.root).field("new", &self.new).finish_non_exhaustive()
    }
}

/// One disk.
pub(crate) struct Scratch {
    root: OwnedFd,
    new: Room,
    state: Mutex<State>,
}

impl Scratch {
    /// Over the root of an empty disk.
    ///
    /// # Errors
    /// When its room cannot be asked for.
    pub(crate) fn new(root: OwnedFd) -> Result<Self, Failure> {
        let new = room(&root).map_err(|e| Failure::new(Reason::LaunchFailed, format!("the disk cannot be used: {e}")))?;
        Ok(Self { root, new, state: Mutex::new(State::Empty) })
    }

    /// What the next guest sees, with the disk as new.
    ///
    /// # Errors
    /// When the disk cannot be opened, or what belongs there does not fit.
    pub(crate) fn open(&self, view: &View) -> Result<WasiFilesystemCtx, Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Open(open) => return Ok(open.context.clone()),
            State::Spoilt(why) => return Err(Failure::new(Reason::LaunchFailed, format!("the disk cannot be emptied: {why}"))),
            State::Empty => {}
        }
        let failed = |e: Errno| Failure::new(Reason::LaunchFailed, format!("the disk cannot be opened: {e}"));
        let directory = open_directory(&self.root, GUEST_DIRECTORY).map_err(failed)?;
        for seed in view.seeds() {
            tree::copy(&seed.source, &directory, &seed.path).map_err(|e| match e {
                Errno::NOSPC => {
                    let size = Bytes(view.disk_bytes().unwrap_or(0));
                    Failure::new(Reason::DiskLimit, format!("the disk limit of {size} was reached while files were put at /{}", seed.path))
                }
                e => Failure::new(Reason::LaunchFailed, format!("files cannot be put on the disk: {e}")),
            })?;
        }
        let context = view.with(&directory)?;
        let changed = changed(&directory).map_err(failed)?;
        *state = State::Open(Open { directory, changed, context: context.clone() });
        Ok(context)
    }

    /// Adds to how a guest ended that its disk was full, if it was and the guest did not cope.
    pub(crate) fn judge(&self, view: &View, ended: &mut Ended) {
        let Some(failure) = ended.failure.as_mut().filter(|f| matches!(f.reason, Reason::ExitCode | Reason::Trap)) else { return };
        if let Some(bytes) = view.disk_bytes().filter(|_| self.is_full()) {
            failure.reason = Reason::DiskLimit;
            failure.message = format!("the disk limit of {} was reached; {}", Bytes(bytes), failure.message);
        }
    }

    /// Whether no more blocks or no more files are to be had.
    fn is_full(&self) -> bool {
        let reserve = LAST_BLOCKS.min(self.new.blocks / LAST_PART);
        room(&self.root).is_ok_and(|now| now.blocks <= reserve || now.inodes == 0)
    }

    /// Nothing of the last guest is left after this, or the disk is used by nobody any more.
    pub(crate) fn clear(&self, view: &View) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            // What was copied may have been changed without a trace in the counters.
            State::Open(open) if view.seeds().is_empty() && self.is_untouched(open) => return,
            State::Open(_) => {}
            // A start that failed while files were copied.
            State::Empty if room(&self.root).is_ok_and(|now| now == self.new) => return,
            State::Empty => {}
            State::Spoilt(_) => return,
        }
        *state = match self.replace() {
            Ok(()) => State::Empty,
            Err(e) => State::Spoilt(e.to_string()),
        };
    }

    fn is_untouched(&self, open: &Open) -> bool {
        room(&self.root).is_ok_and(|now| now == self.new) && changed(&open.directory).is_ok_and(|now| now == open.changed)
    }

    fn replace(&self) -> Result<(), Errno> {
        renameat(&self.root, GUEST_DIRECTORY, &self.root, OLD_DIRECTORY)?;
        mkdirat(&self.root, GUEST_DIRECTORY, Mode::RWXU)?;
        tree::remove(&self.root, OLD_DIRECTORY)
    }
}

fn open_directory(at: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn room(fd: impl AsFd) -> Result<Room, Errno> {
    let StatVfs { f_bavail, f_ffree, .. } = fstatvfs(fd)?;
    Ok(Room { blocks: f_bavail, inodes: f_ffree })
}

/// When a directory was last changed: seconds and nanoseconds.
fn changed(directory: &OwnedFd) -> Result<(i64, i64), Errno> {
    let stat = fstat(directory)?;
    Ok((stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests;
