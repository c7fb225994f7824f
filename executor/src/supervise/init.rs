//! `smalti-executor init`: the worker's parent, pid 1 of its namespace.
//!
//! Owns the listening socket until the worker has it, and the exit record. Single-threaded, a few hundred KiB, no timer: it
//! sleeps in waitpid. It has a session of its own and no parent-death signal, so it outlives the agent; SIGHUP, SIGINT and
//! SIGTERM are blocked (the agent says Shutdown through the socket, or kills the whole namespace through this process).

use super::args::Supervisor;
use super::launch::LISTENING;
use super::{Error, same_binary, step};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;
use rustix::io::FdFlags;
use smalti_executor_protocol::supervision::{EXIT_NAME, ExitRecord, SOCKET_NAME};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

/// Open files of a worker: its tasks' inputs, directories and outputs. Above the usual soft limit of 1024, below what would let
/// one executor use up the host's table.
const MAX_OPEN_FILES: u64 = 65_536;

/// Runs the role.
pub(super) fn run(args: &Supervisor) -> Result<(), Error> {
    match start(args) {
        Ok(worker) => supervise(args, worker),
        Err(e) => {
            // For `launch`, which waits for a line.
            println!("{e}");
            Err(e)
        }
    }
}

/// Sets this process up, binds the socket and starts the worker.
fn start(args: &Supervisor) -> Result<Pid, Error> {
    nix::unistd::setsid().map_err(step("setsid"))?;
    let mut blocked = SigSet::empty();
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT] {
        blocked.add(signal);
    }
    blocked.thread_block().map_err(step("blocking signals"))?;
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("turning core dumps off"))?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(step("reading the limit of open files"))?;
    let files = hard.min(MAX_OPEN_FILES);
    setrlimit(Resource::RLIMIT_NOFILE, files, files).map_err(step(format!("limiting open files to {files}")))?;

    remove_old(&args.directory.join(EXIT_NAME))?;
    let listener = bind(args)?;
    let worker = spawn(args, &listener)?;
    println!("{LISTENING}");
    std::io::stdout().flush().map_err(step("telling the launcher"))?;
    Ok(worker)
}

/// The worker's socket. A unix socket's address holds 108 bytes and a data directory may be longer: so from inside it.
fn bind(args: &Supervisor) -> Result<UnixListener, Error> {
    std::env::set_current_dir(&args.directory).map_err(step(format!("entering {}", args.directory.display())))?;
    remove_old(Path::new(SOCKET_NAME))?;
    UnixListener::bind(SOCKET_NAME).map_err(step(format!("binding {}", args.directory.join(SOCKET_NAME).display())))
}

/// Removes what an earlier executor left under the same name.
fn remove_old(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(step(format!("removing the old {}", path.display()))(e)),
        _ => Ok(()),
    }
}

fn spawn(args: &Supervisor, listener: &UnixListener) -> Result<Pid, Error> {
    rustix::io::fcntl_setfd(listener, FdFlags::empty()).map_err(step("passing the listening socket on"))?;
    let child = same_binary()
        .arg("work")
        .args(["--listen-fd", &listener.as_raw_fd().to_string()])
        .args(["--recovery-timeout-ms", &args.recovery_timeout_ms.to_string()])
        .args(&args.worker)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(step("starting the worker"))?;
    i32::try_from(child.id()).map(Pid::from_raw).map_err(|_| step("the worker's pid")(std::io::Error::other("out of range")))
}

/// Reaps until the worker has ended, then records how.
fn supervise(args: &Supervisor, worker: Pid) -> Result<(), Error> {
    let record = loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == worker => break ExitRecord { code: Some(code), ..record() },
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == worker => break ExitRecord { signal: Some(signal as i32), ..record() },
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(step("waiting for the worker")(e)),
        }
    };
    record.store(&args.directory).map_err(step(format!("recording the worker's end in {}", args.directory.display())))
}

fn record() -> ExitRecord {
    ExitRecord { version: ExitRecord::VERSION, ..ExitRecord::default() }
}
