//! The forge: one process of `smalti-executor` that has nothing to do but to copy itself. Each launcher is such a
//! copy, and where none is needed each executor.
//!
//! Owns that process: started with the first executor, again when it is gone. With the last [`Forge`] it ends, as soon as none of the
//! executors lives whose end it records. Such a process is in its executor's groups before this module lets go of it. Calls block for less
//! than a millisecond, and belong on a thread that may.

use crate::cgroup::ExecutorGroup;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use smalti_executor_protocol::blocking;
use smalti_executor_protocol::supervision::{FORGE_PLACED, Forged, MAX_FORGE_BYTES};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A forge that does not answer for this long is replaced.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take to end when it has nobody to watch, and how often to look.
const END_WITHIN: Duration = Duration::from_millis(50);
const END_PAUSE: Duration = Duration::from_millis(1);
/// Longest answer.
const MAX_ANSWER_BYTES: usize = 8 << 10;
/// Its command line is as long as that of its copies may become: they show their own instead.
const ROOM_BYTES: usize = 4 << 10;

/// Where launchers come from. Clones share one process.
#[derive(Debug, Clone)]
pub(super) struct Forge {
    program: PathBuf,
    /// Of all executors; what finds processes of this agent by their command lines finds the forge.
    directory: PathBuf,
    process: Arc<Mutex<Option<Process>>>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    socket: OwnedFd,
}

/// What the forge has started, in its groups. Killed when dropped, unless it has ended.
#[derive(Debug)]
pub(super) struct Launching {
    pub(super) pidfd: Arc<OwnedFd>,
    /// It is the executor itself, with this pid; otherwise a launcher.
    pub(super) alone: Option<i32>,
    kept: bool,
}

impl Launching {
    /// From here on it is somebody else's to kill.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Launching {
    fn drop(&mut self) {
        if !self.kept {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
    }
}

impl Forge {
    pub(super) fn new(program: PathBuf, directory: PathBuf) -> Self {
        Self { program, directory, process: Arc::default() }
    }

    /// Starts a launcher with these arguments, or where none is needed the executor, which waits for its go byte on `stdin`, and moves it
    /// into `group`.
    ///
    /// # Errors
    /// When there is no forge, it refuses, or the kernel does.
    pub(super) fn launch(&self, arguments: &[OsString], [stdin, stdout]: [OwnedFd; 2], group: &ExecutorGroup) -> io::Result<Launching> {
        let mut packet = Vec::new();
        for argument in arguments {
            packet.extend_from_slice(argument.as_bytes());
            packet.push(0);
        }
        if packet.len() > MAX_FORGE_BYTES {
            return Err(io::Error::other(format!("its command line has {} bytes, {MAX_FORGE_BYTES} are the most", packet.len())));
        }
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let fds = [stdin.as_fd(), stdout.as_fd()];
        if let Some(alive) = &*process {
            match alive.ask(&packet, fds) {
                Ok(forged) => return alive.place(forged, group),
                Err(e) => tracing::warn!("the process that executors are copied from is replaced: {e}"),
            }
        }
        // Dropped before the next one begins.
        if let Some(mut useless) = process.take() {
            let _ = useless.child.kill();
        }
        let started = process.insert(self.start()?);
        started.ask(&packet, fds).and_then(|forged| started.place(forged, group))
    }

    fn start(&self) -> io::Result<Process> {
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_WITHIN))?;
        set_socket_timeout(&socket, Timeout::Send, Some(ANSWER_WITHIN))?;
        let mut command = Command::new(&self.program);
        command.arg("forge").arg("--dir").arg(&self.directory).arg(" ".repeat(ROOM_BYTES));
        command.env_clear().stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit());
        Ok(Process { child: command.spawn()?, socket })
    }
}

impl Process {
    fn ask(&self, packet: &[u8], fds: [BorrowedFd<'_>; 2]) -> io::Result<Forged> {
        blocking::transmit(&self.socket, packet, &fds).map_err(io::Error::other)?;
        let mut answer = [0; MAX_ANSWER_BYTES];
        let chunk = blocking::receive(&self.socket, &mut answer).map_err(io::Error::other)?;
        let text = String::from_utf8_lossy(answer.get(..chunk.bytes).unwrap_or_default());
        Forged::parse(&text).map_err(|e| io::Error::other(format!("it said {text:?}: {e}")))
    }

    /// Moves it into its groups. The forge waits for nobody before it hears of that, so the pid is its own.
    fn place(&self, forged: Forged, group: &ExecutorGroup) -> io::Result<Launching> {
        let (pid, alone) = match forged {
            Forged::Started { pid } => (pid, None),
            Forged::Alone { pid } => (pid, Some(pid)),
            Forged::Failed { error } => return Err(io::Error::other(error)),
        };
        let placed = Pid::from_raw(pid).ok_or_else(|| io::Error::other(format!("{pid} is no process id"))).and_then(|raw| {
            let launching = Launching { pidfd: Arc::new(pidfd_open(raw, PidfdFlags::NONBLOCK)?), alone, kept: false };
            let add = if alone.is_some() { group.add_process_to_slot(pid) } else { group.add_process(pid) };
            add.map_err(io::Error::other)?;
            Ok(launching)
        });
        blocking::transmit(&self.socket, FORGE_PLACED, &[]).map_err(io::Error::other)?;
        placed
    }
}

impl Drop for Process {
    /// It ends by itself when its socket closes: at once, or after the executors that it watches.
    fn drop(&mut self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
        let until = Instant::now() + END_WITHIN;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(END_PAUSE);
        }
    }
}
