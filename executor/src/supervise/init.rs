//! `smalti-executor init`: the worker's parent, pid 1 of its namespace.
//!
//! Owns the listening socket until the worker has it, the exit record, and the walls that both processes share: it leaves the
//! namespaces and becomes another user before it starts the worker, and takes the root away from both when the worker says that
//! it needs it no more. Single-threaded, a few hundred KiB, no timer: afterwards it sleeps in waitpid, without capabilities,
//! behind a filter of fifteen calls. It has a session of its own and no parent-death signal, so it outlives the agent; SIGHUP,
//! SIGINT and SIGTERM are blocked (the agent says Shutdown through the socket, or kills the whole namespace through this process).

use super::args::Supervisor;
use super::fork::Image;
use super::launch::{LISTENING, MAPPED, UNMAPPED, WARNING};
use super::{Error, fork, step, step_said};
use crate::confine::namespaces::Left;
use crate::confine::rlimits::Limits;
use crate::confine::rules::Imposed;
use crate::confine::walls::{MAX_ANSWER_BYTES, READY};
use crate::confine::{filter, identity, layout, namespaces, open_wall, rlimits, root, rules};
use crate::worker;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Gid, Pid, Uid, read, write};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use smalti_executor_protocol::supervision::{ExitRecord, SOCKET_NAME};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

/// What this process holds while it supervises.
struct Supervised {
    worker: Pid,
    /// The line to the worker: it is ready for its walls; a call was denied.
    line: OwnedFd,
    record: File,
    /// Whether the root can be exchanged without anybody else noticing.
    own_mounts: bool,
}

/// Runs the role.
pub(super) fn run(args: &Supervisor) -> Result<(), Error> {
    match start(args) {
        Ok(supervised) => supervise(&supervised),
        Err(e) => {
            // For `launch`, which waits for a line.
            println!("{e}");
            Err(e)
        }
    }
}

/// Sets this process up, binds the socket, closes the walls that can be closed before the worker exists, and starts it.
fn start(args: &Supervisor) -> Result<Supervised, Error> {
    let mut warnings = Vec::new();
    let record = ExitRecord::create(&args.directory).map_err(step(format!("making the exit record in {}", args.directory.display())))?;
    let files = prepare(args, &mut warnings)?;
    let outside = identity::current();
    let left = if args.namespaces { namespaces::leave(&mut warnings) } else { Left::none() };
    if left.user() {
        get_mapped(args, outside)?;
    }
    namespaces::rename_host(left, &mut warnings);
    let mut own_mounts = left.mount();
    if let Some(Err(e)) = own_mounts.then(root::prepare) {
        warnings.push(open_wall("empty_root", e));
        own_mounts = false;
    }
    std::env::set_current_dir("/").map_err(step("going to the root"))?;
    if let Some(uid) = args.uid {
        identity::become_user(uid).map_err(step_said(format!("becoming user {uid}")))?;
    }
    identity::give_up_more(&mut warnings);

    let supervised = start_worker(args, files, record, own_mounts)?;
    for warning in warnings {
        println!("{WARNING}{}", warning.replace('\n', " "));
    }
    println!("{LISTENING}");
    std::io::stdout().flush().map_err(step("telling the launcher"))?;
    Ok(supervised)
}

/// What is opened as long as there are paths.
pub(super) struct Files {
    pub(super) listener: UnixListener,
    pub(super) nothing: File,
    pub(super) seed: layout::Seed,
}

/// A session of its own, limits, and all files that a worker needs.
pub(super) fn prepare(args: &Supervisor, warnings: &mut Vec<String>) -> Result<Files, Error> {
    nix::unistd::setsid().map_err(step("setsid"))?;
    let mut blocked = SigSet::empty();
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT] {
        blocked.add(signal);
    }
    blocked.thread_block().map_err(step("blocking signals"))?;
    umask(Mode::from_bits_truncate(0o077));
    rlimits::set(Limits { threads: args.max_threads, file_bytes: args.max_file_bytes }, warnings);
    let listener = bind(args)?;
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(step("opening /dev/null"))?;
    Ok(Files { listener, nothing, seed: layout::seed() })
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

/// Has the maps of the user namespace written that this process is in now; `outside` is who it was before.
fn get_mapped(args: &Supervisor, (uid, gid): (Uid, Gid)) -> Result<(), Error> {
    if args.self_mapped {
        return namespaces::write_maps("self", uid, gid, false).map_err(step_said("mapping its own user"));
    }
    println!("{UNMAPPED}");
    std::io::stdout().flush().map_err(step("asking the launcher for a mapping"))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(step("waiting for a mapping"))?;
    if answer.trim_end() == MAPPED {
        return Ok(());
    }
    Err(step_said("waiting for a mapping")("the launcher gave none"))
}

/// The worker, a copy of this process without its capabilities. `own_mounts`: the root is to be taken away from both.
fn start_worker(args: &Supervisor, files: Files, record: File, own_mounts: bool) -> Result<Supervised, Error> {
    let Files { listener, nothing, seed } = files;
    let (line, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(step("making a line"))?;
    let kept = args.keep_fd.map(keep).transpose().map_err(step("passing a descriptor on"))?;
    let descriptors = for_worker(nothing, listener.into(), theirs, kept)?;
    let arguments = worker_arguments(args, false);
    let body = || {
        if let Err(e) = identity::as_after_exec() {
            eprintln!("smalti-executor: {e}");
            return ExitCode::FAILURE;
        }
        layout::scatter_or_say(seed);
        worker::main(arguments.clone())
    };
    let worker = fork::fork(&arguments, descriptors, Image::of(args.self_mapped), body).map_err(step("starting the worker"))?;
    Ok(Supervised { worker, line, record, own_mounts })
}

/// What a worker has open: nothing to read or write, the log of its executor, its socket, the line on which it says what its filter denied,
/// and what is to stay open.
pub(super) fn for_worker(nothing: File, listener: OwnedFd, line: OwnedFd, kept: Option<OwnedFd>) -> Result<fork::Descriptors, Error> {
    let stderr = std::io::stderr().as_fd().try_clone_to_owned();
    let nothing = [nothing.try_clone().map(OwnedFd::from), Ok(OwnedFd::from(nothing)), stderr];
    let mut descriptors = nothing.into_iter().collect::<Result<Vec<_>, _>>().map_err(step("the worker's files"))?;
    descriptors.extend([listener, line].into_iter().chain(kept));
    Ok(descriptors)
}

/// Its command line; `alone`: it has no supervisor.
pub(super) fn worker_arguments(args: &Supervisor, alone: bool) -> Vec<OsString> {
    let numbers = [("--listen-fd", "3"), ("--supervisor-fd", "4")];
    let words = [("--kind", args.kind.as_str()), ("--recovery-timeout-ms", &args.recovery_timeout_ms.to_string())];
    let mut arguments = vec![OsString::from("work")];
    arguments.extend(numbers.into_iter().chain(words).flat_map(|(flag, value)| [flag.into(), value.into()]));
    arguments.extend(alone.then(|| "--alone".into()));
    arguments.extend(args.worker.iter().cloned());
    arguments
}

/// Another descriptor of what the launcher passed on.
fn keep(number: RawFd) -> std::io::Result<OwnedFd> {
    #[expect(unsafe_code, reason = "a descriptor that this process was started with has no owner")]
    // SAFETY: the launcher passed it on under this number, and nobody closes it before this process ends.
    let kept = unsafe { BorrowedFd::borrow_raw(number) };
    kept.try_clone_to_owned()
}

/// Closes the rest of the walls when the worker is ready, reaps until it has ended, then records how.
fn supervise(supervised: &Supervised) -> Result<(), Error> {
    let mut packet = [0; READY.len()];
    // Nothing: the worker ended before it was ready.
    if read(&supervised.line, &mut packet).is_ok_and(|n| packet.get(..n) == Some(READY)) {
        let mut answer = close_walls(supervised.own_mounts).join("\n").into_bytes();
        // A packet without a byte would be the end.
        answer.push(b'\n');
        answer.truncate(MAX_ANSWER_BYTES);
        // A worker that is gone is reaped below.
        let _ = write(&supervised.line, &answer);
    }
    let ended = loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == supervised.worker => break ExitRecord { code: Some(code), ..record() },
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == supervised.worker => {
                break ExitRecord { signal: Some(signal as i32), ..record() };
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(step("waiting for the worker")(e)),
        }
    };
    // Nobody else holds the other end: this is the last packet, or the end.
    let mut number = [0; size_of::<i32>()];
    let length = read(&supervised.line, &mut number).unwrap_or_default();
    let denied_syscall = (length == number.len()).then(|| i32::from_le_bytes(number));
    ExitRecord { denied_syscall, ..ended }.store(&supervised.record).map_err(step("recording the worker's end"))
}

/// Empties the root of both processes, and locks this one in. Gives the walls that stay open.
fn close_walls(own_mounts: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    if own_mounts && let Err(e) = root::empty() {
        warnings.push(open_wall("empty_root", e));
    }
    identity::drop_capabilities(&mut warnings);
    identity::close_to_others(&mut warnings);
    if let Imposed::Failed(why) = rules::for_supervisor() {
        warnings.push(open_wall("landlock", format!("{why} (supervisor)")));
    }
    if let Err(e) = filter::impose_on_supervisor() {
        warnings.push(open_wall("seccomp", format!("{e} (supervisor)")));
    }
    warnings
}

/// Of this version, without an end.
pub(super) fn record() -> ExitRecord {
    ExitRecord { version: ExitRecord::VERSION, ..ExitRecord::default() }
}
