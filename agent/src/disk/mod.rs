//! The writable directories of tasks that ask for disk: file systems of the size asked for, bounded in files too.
//!
//! A [`Lent`] directory is the root of a file system of its own that is mounted nowhere (a detached mount: it has no path, and is gone with
//! its last descriptor, whatever becomes of this process). Its size is the kernel's business: a guest that writes more gets `ENOSPC` there and
//! then, and nothing here polls. Made by a [`backend`], kept in a [`pool`] for the next task of the same framework and size, and handed out
//! again only when the kernel counts as many free blocks and files in it as when it was new.
//!
//! Owns which backend is used, what is lent and what is kept. Deliberately absent: what lies in a directory (the executor empties it after
//! each guest), and who may have how much (resources are the master's and the core's).

mod backend;
mod ext4;
mod keeper;
mod loop_device;
mod mount;
mod pool;
#[cfg(test)]
mod tests;
mod tmpfs;

pub use backend::Choice;
pub(crate) use keeper::{Disks, Lent};
pub(crate) use mount::Error;

use crate::detect::Detected;
use smalti_types::Bytes;

/// The name of this layer in what the agent says about isolation.
pub(crate) const LAYER: &str = "disk";
/// One file or directory for this much disk, about…
const BYTES_PER_INODE: u64 = 16 << 10;
/// … but never fewer than this.
const LEAST_INODES: u64 = 1024;
/// What is allocated at a time, in every backend.
const BLOCK: u64 = 4096;
/// In memory without another word: this part of it becomes disk.
const MEMORY_PART: u64 = 4;

/// Files and directories that a disk of `size` has room for.
const fn inodes(size: Bytes) -> u64 {
    let by_size = size.0 / BYTES_PER_INODE;
    if by_size < LEAST_INODES { LEAST_INODES } else { by_size }
}

/// What the agent advertises, given where disks come from: none without a backend, and what lies in memory is no memory for tasks any more.
/// `set`: whether the operator set disk and memory.
pub(crate) fn advertise(disks: &Disks, set: (bool, bool), mut detected: Detected) -> Detected {
    let (disk_set, memory_set) = set;
    let total = &mut detected.total;
    if !disks.works() {
        if disk_set && total.disk.0 > 0 {
            tracing::warn!(disk = %total.disk, "no disk is advertised, although it was set: {}", disks.state());
        }
        total.disk = Bytes(0);
    } else if disks.in_memory() {
        if !disk_set {
            // What was set is advertised whole: there is nothing to take disk from.
            total.disk = if memory_set { Bytes(0) } else { Bytes(total.mem.0 / MEMORY_PART) };
        }
        if !memory_set {
            total.mem = Bytes(total.mem.0.saturating_sub(total.disk.0));
        }
    }
    detected
}
