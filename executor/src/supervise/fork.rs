//! Copies of this process in place of new programs: the roles of one executor, each a child of the one before.
//!
//! Starting this program anew costs a millisecond of relocations and page faults for each of three roles; a copy of a process that
//! has done all that costs a fifth. What an exec does beside is done here by hand: descriptors that are not passed on are closed,
//! and the command line says what the copy is. What an exec does to privileges is the business of whoever needs it
//! (`confine::identity::as_after_exec`). Deliberately absent: what the roles do.

use nix::unistd::{ForkResult, Pid};
use std::ffi::{OsStr, OsString};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::{io, mem, process};

/// Descriptors are brought together above this number before they get their places.
const ABOVE: RawFd = 512;
/// Exit code of a copy that panicked, as Rust's own.
const PANICKED: i32 = 101;

/// What a copy has open: these become 0, 1, 2, and so on. Nothing else stays open in it.
pub(super) type Descriptors = Vec<OwnedFd>;

/// Whether a copy goes on as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Image {
    /// It does.
    Copied,
    /// It runs this program anew. The kernel lets only those look at a process who may at where its memory was made: an agent without
    /// privilege may look into the user namespaces that it made, and this puts the memory there.
    Anew,
}

impl Image {
    /// For what is started in a user namespace that nobody with privilege made.
    pub(super) const fn of(self_mapped: bool) -> Self {
        if self_mapped { Self::Anew } else { Self::Copied }
    }
}

/// Starts a copy of this process, which must have one thread, that has `descriptors`, is called `smalti-executor` with these
/// `arguments`, does `body` (or what its arguments say, if it runs the program anew) and ends. Returns in the parent only.
///
/// # Errors
/// When the kernel does not make the process.
pub(super) fn fork(arguments: &[OsString], descriptors: Descriptors, image: Image, body: impl FnOnce() -> ExitCode) -> io::Result<Pid> {
    #[expect(unsafe_code, reason = "there is no safe fork")]
    // SAFETY: this process has one thread, so the copy is in no state that it could not go on from.
    let forked = unsafe { nix::unistd::fork() }?;
    let ForkResult::Parent { child } = forked else {
        let code = std::panic::catch_unwind(AssertUnwindSafe(|| {
            if let Err(e) = have_only(descriptors) {
                eprintln!("smalti-executor: passing descriptors on: {e}");
                return false;
            }
            if image == Image::Anew {
                let e = run_anew(arguments);
                eprintln!("smalti-executor: running this program anew: {e}");
                return false;
            }
            set_title(arguments);
            body() == ExitCode::SUCCESS
        }));
        // Whatever the caller holds is the parent's: nothing of it is dropped here.
        process::exit(code.map_or(PANICKED, |well| i32::from(!well)));
    };
    Ok(child)
}

/// In a copy that becomes something else: has these descriptors from now on, as a copy of its own would.
///
/// # Errors
/// What the kernel said.
pub(super) fn have_only(descriptors: Descriptors) -> io::Result<()> {
    arrange(&descriptors)?;
    // Their numbers are others' now.
    mem::forget(descriptors);
    Ok(())
}

/// In a copy: one of the descriptors that were passed on, once.
pub(super) fn inherited(number: RawFd) -> OwnedFd {
    #[expect(unsafe_code, reason = "a descriptor that was passed on has no owner in the copy")]
    // SAFETY: the parent passed it on under this number, and whoever takes it takes it once.
    unsafe {
        OwnedFd::from_raw_fd(number)
    }
}

/// Returns only when it could not be done. By its real path, so that `ps` shows its name.
fn run_anew(arguments: &[OsString]) -> io::Error {
    let path = std::env::current_exe().ok().filter(|p| p.exists()).unwrap_or_else(|| "/proc/self/exe".into());
    std::process::Command::new(path).arg0("smalti-executor").args(arguments).env_clear().exec()
}

/// Gives the descriptors their numbers and closes everything else.
fn arrange(descriptors: &[OwnedFd]) -> io::Result<()> {
    let mut together = Vec::with_capacity(descriptors.len());
    for fd in descriptors {
        together.push(nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD(ABOVE))?);
    }
    for (number, fd) in (0..).zip(&together) {
        #[expect(unsafe_code, reason = "a number is given to a descriptor, whoever had it before")]
        // SAFETY: this copy of the process uses none of its parent's descriptors any more.
        let duplicated = unsafe { nix::libc::dup2(*fd, number) };
        nix::errno::Errno::result(duplicated)?;
    }
    let first = u32::try_from(together.len()).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "descriptors of the parent are closed, whoever owned them there")]
    // SAFETY: as above.
    let closed = unsafe { nix::libc::close_range(first, u32::MAX, 0) };
    nix::errno::Errno::result(closed).map(drop).map_err(|e| io::Error::other(format!("close_range (Linux 5.9 and later): {e}")))
}

/// Where the kernel reads this process's command line.
#[derive(Debug, Clone, Copy)]
struct Area {
    start: usize,
    length: usize,
}

static AREA: OnceLock<Option<Area>> = OnceLock::new();

/// Changes what `ps` shows of this process, as far as there is room: what its parent was started with. After this nobody may ask
/// for the arguments of the process any more.
pub(super) fn set_title(arguments: &[OsString]) {
    let Some(area) = *AREA.get_or_init(find_area) else { return };
    let mut text = Vec::with_capacity(area.length);
    for word in std::iter::once(OsStr::new("smalti-executor")).chain(arguments.iter().map(OsString::as_os_str)) {
        text.extend_from_slice(word.as_bytes());
        text.push(0);
    }
    text.resize(area.length, 0);
    // The last byte tells the kernel that the area has not been outgrown.
    if let Some(last) = text.last_mut() {
        *last = 0;
    }
    #[expect(unsafe_code, reason = "the command line is memory of this process that nobody in it owns")]
    // SAFETY: the kernel put the arguments there, writable and as long as it says, and nobody reads them here any more.
    unsafe {
        std::ptr::with_exposed_provenance_mut::<u8>(area.start).copy_from_nonoverlapping(text.as_ptr(), area.length);
    }
}

/// Fields 48 and 49 of `/proc/self/stat`.
fn find_area() -> Option<Area> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may have anything in it; what is behind it begins with field 3.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(48 - 3);
    let (start, end): (usize, usize) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (start > 0 && end > start).then(|| Area { start, length: end - start })
}
