//! Trees of files by descriptor: copied, and removed however deep a guest has made them.
//!
//! Follows no symbolic link. Owns nothing. Plain reads and writes only: the worker's system call filter knows few others.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// Levels of directories that are copied; archives and inputs have fewer.
const MAX_DEPTH: usize = 40;
/// Bytes copied at a time.
const BUFFER: usize = 64 << 10;
/// Where directories wait whose parents are removed, beside the tree that is.
const WAITING: [&str; 2] = ["waiting-0", "waiting-1"];

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Copies what is in `source` to `path` below `target`; directories on the way there are made.
///
/// # Errors
/// What the file system says; what was copied before stays.
pub(super) fn copy(source: &OwnedFd, target: &OwnedFd, path: &str) -> Result<(), Errno> {
    let mut at = openat(target, ".", DIRECTORY, Mode::empty())?;
    for part in path.split('/').filter(|p| !p.is_empty()) {
        at = make_directory(&at, part)?;
    }
    copy_level(source, &at, MAX_DEPTH)
}

fn make_directory(at: &OwnedFd, name: impl rustix::path::Arg + Copy) -> Result<OwnedFd, Errno> {
    match mkdirat(at, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => openat(at, name, DIRECTORY, Mode::empty()),
        Err(e) => Err(e),
    }
}

fn copy_level(source: &OwnedFd, target: &OwnedFd, depth: usize) -> Result<(), Errno> {
    if depth == 0 {
        return Err(Errno::NAMETOOLONG);
    }
    for entry in Dir::read_from(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        // Whatever the directory says of its kind: opened as a directory it is one, opened as a file it is copied.
        match openat(source, name, DIRECTORY, Mode::empty()) {
            Ok(from) => copy_level(&from, &make_directory(target, name)?, depth - 1)?,
            Err(Errno::NOTDIR) => copy_file(source, target, name)?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn copy_file(source: &OwnedFd, target: &OwnedFd, name: &std::ffi::CStr) -> Result<(), Errno> {
    let from = openat(source, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = openat(target, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = match rustix::io::read(&from, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
        };
        let mut written = 0;
        while written < read {
            match rustix::io::write(&to, &buffer[written..read]) {
                Ok(n) => written += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Removes the directory `name` of `root` with all that is in it. Level by level: directories of the next level wait beside it, so
/// that neither descriptors nor stack depend on the depth.
///
/// # Errors
/// What the file system says; a part may be gone then.
pub(super) fn remove(root: impl AsFd, name: &str) -> Result<(), Errno> {
    let root = root.as_fd();
    let mut level = openat(root, name, DIRECTORY, Mode::empty())?;
    let mut current = name;
    for round in 0.. {
        let next = WAITING[round % 2];
        let waiting = remove_level(root, &level, next)?;
        unlinkat(root, current, AtFlags::REMOVEDIR)?;
        let Some(waiting) = waiting else { return Ok(()) };
        (level, current) = (waiting, next);
    }
    Ok(())
}

/// Empties `level`. Directories of its directories are moved to `next`, which is made when there are any.
fn remove_level(root: impl AsFd, level: &OwnedFd, next: &str) -> Result<Option<OwnedFd>, Errno> {
    let root = root.as_fd();
    let mut waiting: Option<OwnedFd> = None;
    let mut moved = 0_u64;
    let mut keep = |from: &OwnedFd, name: &std::ffi::CStr| {
        let to = match &waiting {
            Some(to) => to,
            None => {
                mkdirat(root, next, Mode::RWXU)?;
                waiting.insert(openat(root, next, DIRECTORY, Mode::empty())?)
            }
        };
        moved += 1;
        renameat(from, name, to, moved.to_string())
    };
    for_each(level, |name, is_directory| {
        if !is_directory {
            return unlinkat(level, name, AtFlags::empty());
        }
        let inner = openat(level, name, DIRECTORY, Mode::empty())?;
        for_each(&inner, |name, is_directory| if is_directory { keep(&inner, name) } else { unlinkat(&inner, name, AtFlags::empty()) })?;
        unlinkat(level, name, AtFlags::REMOVEDIR)
    })?;
    Ok(waiting)
}

/// Each entry, and whether it is a directory. Entries may be removed on the way.
fn for_each(directory: &OwnedFd, mut act: impl FnMut(&std::ffi::CStr, bool) -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        let mut seen = false;
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            seen = true;
            let is_directory = match entry.file_type() {
                FileType::Directory => true,
                FileType::Unknown => openat(directory, name, DIRECTORY, Mode::empty()).is_ok(),
                _ => false,
            };
            act(name, is_directory)?;
        }
        // What a listing skipped because entries went while it was read is in the next one.
        if !seen {
            return Ok(());
        }
    }
}
