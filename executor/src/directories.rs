//! The directories a guest sees, from descriptors that the agent passed.
//!
//! Wasmtime's WASI opens preopened directories by path only. A descriptor is turned into one by making it the current
//! directory for a moment: that needs neither `/proc` nor a path that this process could resolve. Afterwards the current
//! directory is the root, which is empty once the worker is confined. Nothing else in the executor uses the current directory.
//!
//! Owns what all runs of a task or array part see, and how a writable disk fits in: it is preopened at its path, and once more
//! as the current directory, so that relative paths work in guests of every kind. Read-only directories that lie below the
//! disk's path are not preopened: [`crate::scratch`] copies them to the disk. Does not look into the directories.

use crate::failure::Failure;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::fchdir;
use smalti_executor_protocol::v1::{Disk, GuestDir};
use smalti_types::task_state::Reason;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

/// Most directories of one guest.
pub(crate) const MAX_DIRECTORIES: usize = 32;

/// The guest's root, and where it finds what its bundle brings.
const ROOT: &str = "/";
const ASSETS: &str = "/assets";

/// The current directory is one per process.
static CURRENT: Mutex<()> = Mutex::new(());

/// A read-only directory whose files a guest finds on its disk.
#[derive(Debug)]
pub(crate) struct Seed {
    /// Where, relative to the disk; empty: the disk itself.
    pub(crate) path: String,
    pub(crate) source: OwnedFd,
}

/// What the guests of one template see of the file system.
pub(crate) struct View {
    /// What does not change: all there is for a guest without a disk.
    fixed: WasiFilesystemCtx,
    /// How many directories the guest finds open.
    count: u32,
    disk: Option<DiskView>,
}

struct DiskView {
    disk: Disk,
    others: Vec<(GuestDir, OwnedFd)>,
    seeds: Vec<Seed>,
}

impl View {
    /// `fds`: those of `directories`, in their order.
    ///
    /// # Errors
    /// A descriptor that is no directory or may not be entered; too many of them.
    pub(crate) fn new(directories: Vec<GuestDir>, disk: Option<Disk>, fds: Vec<OwnedFd>) -> Result<Self, Failure> {
        if directories.len() > MAX_DIRECTORIES || directories.len() != fds.len() {
            let message =
                format!("{} directories with {} descriptors; at most {MAX_DIRECTORIES} are possible", directories.len(), fds.len());
            return Err(Failure::new(Reason::LaunchFailed, message));
        }
        let all: Vec<(GuestDir, OwnedFd)> = directories.into_iter().zip(fds).collect();
        let Some(disk) = disk else {
            let fixed = preopen(all.iter().map(|(d, fd)| (d.guest_path.as_str(), d.writable, fd.as_fd())))?;
            return Ok(Self { fixed, count: number(all.len()), disk: None });
        };
        let (mut others, mut seeds) = (Vec::new(), Vec::new());
        for (directory, source) in all {
            match below(&directory.guest_path, &disk.guest_path) {
                Some(path) => seeds.push(Seed { path: path.to_owned(), source }),
                None => others.push((directory, source)),
            }
        }
        // Those nearer to the top first: the ones below them are made in them.
        seeds.sort_by(|a, b| a.path.cmp(&b.path));
        let named = others.iter().map(|(d, _)| d.guest_path.as_str()).chain([disk.guest_path.as_str()]).any(is_top);
        let count = number(others.len() + 1 + usize::from(!named));
        Ok(Self { fixed: WasiFilesystemCtx::default(), count, disk: Some(DiskView { disk, others, seeds }) })
    }

    /// How many directories the guest finds open.
    pub(crate) const fn count(&self) -> u32 {
        self.count
    }

    /// What a guest without a disk sees; cheap.
    pub(crate) fn fixed(&self) -> WasiFilesystemCtx {
        self.fixed.clone()
    }

    /// Size of the disk in bytes, if there is one.
    pub(crate) fn disk_bytes(&self) -> Option<u64> {
        self.disk.as_ref().map(|d| d.disk.bytes)
    }

    /// What is to be copied to the disk.
    pub(crate) fn seeds(&self) -> &[Seed] {
        self.disk.as_ref().map_or(&[], |d| &d.seeds)
    }

    /// What a guest sees whose disk is `directory`.
    ///
    /// # Errors
    /// As [`View::new`].
    pub(crate) fn with(&self, directory: &OwnedFd) -> Result<WasiFilesystemCtx, Failure> {
        let Some(DiskView { disk, others, .. }) = &self.disk else { return Ok(self.fixed()) };
        let others = others.iter().map(|(d, fd)| (d.guest_path.as_str(), d.writable, fd.as_fd()));
        let mut all: Vec<_> = others.chain([(disk.guest_path.as_str(), true, directory.as_fd())]).collect();
        // To a guest's C library these two names are the same directory; what the task put there comes first.
        if !all.iter().any(|(path, ..)| is_top(path)) {
            all.push((".", true, directory.as_fd()));
        }
        preopen(all.into_iter())
    }
}

/// The two names of the directory in which a guest's relative paths begin.
fn is_top(path: &str) -> bool {
    matches!(path, "/" | ".")
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// `path` relative to `top`, if it is that or lies below it. A disk that is the guest's whole root begins as a copy of what the
/// bundle brings; inputs stay where they are.
fn below<'a>(path: &'a str, top: &str) -> Option<&'a str> {
    if top == ROOT {
        return (path == ASSETS).then_some("");
    }
    let rest = path.strip_prefix(top)?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('/') }
}

/// Turns descriptors into preopened directories: guest path, whether it may write, descriptor.
fn preopen<'a>(directories: impl Iterator<Item = (&'a str, bool, BorrowedFd<'a>)>) -> Result<WasiFilesystemCtx, Failure> {
    let failed = |what: &str, e: String| Failure::new(Reason::LaunchFailed, format!("cannot open {what}: {e}"));
    let mut directories = directories.peekable();
    if directories.peek().is_none() {
        return Ok(WasiFilesystemCtx::default());
    }
    // Opened anew each time: a descriptor kept from before the worker was confined would lead out of its empty root.
    let home = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let home = home.map_err(|e| failed("the executor's root", e.to_string()))?;
    let _current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut builder = WasiCtxBuilder::new();
    builder.allow_blocking_current_thread(false);
    let mut result = Ok(());
    for (guest_path, writable, fd) in directories {
        let perms = if writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
        result = fchdir(fd)
            .map_err(|e| e.to_string())
            .and_then(|()| builder.preopened_dir(".", guest_path, perms).map(|_| ()).map_err(|e| format!("{e:#}")))
            .map_err(|e| failed(&format!("the directory for {guest_path:?}"), e));
        if result.is_err() {
            break;
        }
    }
    // Whatever happened, nobody's directory stays in use. Failing to go home harms nobody.
    let _ = fchdir(&home);
    result.map(|()| builder.build().filesystem().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_a_disk_is_told_by_whole_names() {
        for (path, top, found) in [
            ("/scratch", "/scratch", Some("")),
            ("/scratch/a/b", "/scratch", Some("a/b")),
            ("/scratch2", "/scratch", None),
            ("/", "/scratch", None),
            ("/assets", "/scratch", None),
        ] {
            assert_eq!(below(path, top), found, "{path} {top}");
        }
    }
}
