//! The directories a guest sees, from descriptors that the agent passed.
//!
//! Wasmtime's WASI opens preopened directories by path only. A descriptor is turned into one by making it the current
//! directory for a moment: that needs neither `/proc` nor a path that this process could resolve. Afterwards the current
//! directory is the root, which is empty once the worker is confined. Nothing else in the executor uses the current directory.
//! Does not look into the directories.

use crate::failure::Failure;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::fchdir;
use smalti_executor_protocol::v1::GuestDir;
use smalti_types::task_state::Reason;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

/// Most directories of one guest.
pub(crate) const MAX_DIRECTORIES: usize = 32;

/// The current directory is one per process.
static CURRENT: Mutex<()> = Mutex::new(());

/// What is preopened for a guest; cheap to clone for each run.
///
/// # Errors
/// A descriptor that is no directory or may not be entered; too many of them.
pub(crate) fn preopen(directories: &[GuestDir], fds: Vec<OwnedFd>) -> Result<WasiFilesystemCtx, Failure> {
    if directories.is_empty() {
        return Ok(WasiFilesystemCtx::default());
    }
    if directories.len() > MAX_DIRECTORIES || directories.len() != fds.len() {
        let message = format!("{} directories with {} descriptors; at most {MAX_DIRECTORIES} are possible", directories.len(), fds.len());
        return Err(Failure::new(Reason::LaunchFailed, message));
    }
    // Opened anew each time: a descriptor kept from before the worker was confined would lead out of its empty root.
    let home = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let home = home.map_err(|e| Failure::new(Reason::LaunchFailed, format!("cannot open the executor's root: {e}")))?;
    let _current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut builder = WasiCtxBuilder::new();
    builder.allow_blocking_current_thread(false);
    let mut result = Ok(());
    for (directory, fd) in directories.iter().zip(&fds) {
        let perms = if directory.writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
        result = fchdir(fd)
            .map_err(|e| e.to_string())
            .and_then(|()| builder.preopened_dir(".", &directory.guest_path, perms).map(|_| ()).map_err(|e| format!("{e:#}")))
            .map_err(|e| Failure::new(Reason::LaunchFailed, format!("cannot open the directory for {:?}: {e}", directory.guest_path)));
        if result.is_err() {
            break;
        }
    }
    // Whatever happened, nobody's directory stays in use. Failing to go home harms nobody.
    let _ = fchdir(&home);
    result.map(|()| builder.build().filesystem().clone())
}
