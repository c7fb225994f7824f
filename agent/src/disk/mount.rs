//! File systems that are mounted nowhere.
//!
//! Owns one such mount with what its kernel counters were when it was new. A detached mount has no path in any namespace, so nothing is to be
//! cleaned up after a crash: it ends with the last descriptor below it. Deliberately absent: which file system it is.

use super::BLOCK;
use rustix::fs::{AtFlags, FallocateFlags, Gid, Mode, OFlags, Uid};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The one entry of an empty disk: the directory that the guest sees. The executor replaces it by a new one when it empties the disk,
/// because a directory that was once large never becomes small again.
pub(super) const GUEST_DIRECTORY: &str = "disk";

/// Why a disk cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {source}")]
pub(crate) struct Error {
    operation: &'static str,
    object: String,
    source: std::io::Error,
}

impl Error {
    pub(super) fn new(operation: &'static str, object: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self { operation, object: object.into(), source: source.into() }
    }
}

/// Free room of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Blocks that a user without privileges can have.
    pub(super) blocks: u64,
    /// Files and directories.
    pub(super) inodes: u64,
}

/// One disk.
#[derive(Debug)]
pub(crate) struct Mounted {
    /// The detached mount itself; it is dissolved when this closes, and the file system goes with the last descriptor.
    _mount: OwnedFd,
    root: Arc<OwnedFd>,
    /// A file without a name that takes what is there beyond what was asked for, for as long as this is open.
    filler: Option<OwnedFd>,
    new: Room,
}

impl Mounted {
    /// Mounts a file system of `kind` with these options (a value or none).
    pub(super) fn mount(kind: &str, options: &[(&str, Option<&str>)]) -> Result<Self, Error> {
        let failed = |operation| move |e: rustix::io::Errno| Error::new(operation, kind, e);
        let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("opening a new"))?;
        for (key, value) in options {
            match value {
                Some(value) => fsconfig_set_string(&fs, *key, *value),
                None => fsconfig_set_flag(&fs, *key),
            }
            .map_err(|e| Error::new("setting an option of", format!("{kind}: {key}"), e))?;
        }
        fsconfig_create(&fs).map_err(failed("making a new"))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mounting a new"))?;
        // The mount's own descriptor cannot be read from.
        let root = open_directory(&mount, ".").map_err(failed("opening the root of a new"))?;
        // What mkfs puts there is of no use to anybody here.
        match rustix::fs::unlinkat(&root, "lost+found", AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(failed("emptying a new")(e)),
        }
        rustix::fs::mkdirat(&root, GUEST_DIRECTORY, Mode::RWXU).map_err(failed("making a directory in a new"))?;
        let new = room(&root).map_err(failed("asking the room of a new"))?;
        Ok(Self { _mount: mount, root: Arc::new(root), filler: None, new })
    }

    /// Takes away what is there beyond `blocks`. Nothing of the file system can give it back, whatever an executor does in it.
    pub(super) fn trim(mut self, blocks: u64) -> Result<Self, Error> {
        let failed = |e: rustix::io::Errno| Error::new("trimming", "a new disk", e);
        let surplus = self.new.blocks.saturating_sub(blocks);
        if surplus > 0 {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let filler = rustix::fs::openat(&self.root, ".", flags, Mode::empty()).map_err(failed)?;
            rustix::fs::fallocate(&filler, FallocateFlags::empty(), 0, surplus * BLOCK).map_err(failed)?;
            self.filler = Some(filler);
            self.new = room(&self.root).map_err(failed)?;
        }
        Ok(self)
    }

    /// The root directory.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The root directory, for a message.
    pub(super) fn descriptor(&self) -> Arc<OwnedFd> {
        self.root.clone()
    }

    /// Free room when it was new.
    pub(super) const fn new_room(&self) -> Room {
        self.new
    }

    /// Whether nothing of a guest is in it: the kernel counts as much free room as when it was new, and the one directory is there.
    pub(super) fn is_like_new(&self) -> bool {
        room(&self.root).is_ok_and(|now| now == self.new) && open_directory(&self.root, GUEST_DIRECTORY).is_ok()
    }

    /// Makes this user its owner, and nobody else may enter.
    pub(super) fn give_to(&self, uid: u32, gid: u32) -> Result<(), Error> {
        let failed = |e: rustix::io::Errno| Error::new("handing over", "a disk", e);
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::fchmod(&self.root, Mode::RWXU).map_err(failed)?;
        rustix::fs::fchown(&self.root, uid, gid).map_err(failed)?;
        rustix::fs::chownat(&self.root, GUEST_DIRECTORY, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }
}

fn open_directory(at: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(at, name, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn room(fd: impl AsFd) -> rustix::io::Result<Room> {
    let stat = rustix::fs::fstatvfs(fd)?;
    Ok(Room { blocks: stat.f_bavail, inodes: stat.f_ffree })
}
