//! An executor's processes from outside: killing them, and knowing when and why they ended.

use super::syscalls;
use crate::cgroup::ExecutorGroup;
use nix::sys::signal::{Signal as NixSignal, killpg};
use nix::unistd::Pid as NixPid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use smalti_executor_protocol::supervision::{ExitRecord, STDERR_NAME, open_plain};
use smalti_types::Bytes;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long to try to remove the groups of an executor that has ended.
const REMOVE_FOR: Duration = Duration::from_secs(10);

/// How long a forge that lives may take to record an end.
const RECORDED_WITHIN: Duration = Duration::from_secs(2);

/// How much of an executor's stderr an error or a warning shows.
const LAST_WORDS_BYTES: u64 = 1024;

/// How an executor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// For people and for status messages: `killed by signal 9 (SIGKILL)`.
    pub cause: String,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its exit code.
    pub code: Option<i32>,
    /// Whether the kernel killed it, or a part of it, at its memory limit.
    pub oom: bool,
}

/// Kills an executor. Clones name the same one. Dropping it does nothing.
#[derive(Debug, Clone)]
pub struct ProcessHandle {
    pid: i32,
    pid_namespace: bool,
    alone: bool,
    pidfd: Arc<OwnedFd>,
    group: ExecutorGroup,
    /// Whether its end was asked for: then it is no news.
    killed: Arc<AtomicBool>,
}

impl ProcessHandle {
    /// Names a supervisor that is surely alive or not yet waited for.
    pub(super) fn open(pid: i32, pid_namespace: bool, group: ExecutorGroup) -> std::io::Result<Self> {
        let raw = Pid::from_raw(pid).ok_or_else(|| std::io::Error::other(format!("{pid} is no process id")))?;
        let pidfd = Arc::new(pidfd_open(raw, PidfdFlags::NONBLOCK)?);
        Ok(Self { pid, pid_namespace, alone: false, pidfd, group, killed: Arc::default() })
    }

    /// Names an executor that is one process, a child of the forge and the first of its pid namespace.
    pub(super) fn alone(pid: i32, pidfd: Arc<OwnedFd>, group: ExecutorGroup) -> Self {
        Self { pid, pid_namespace: true, alone: true, pidfd, group, killed: Arc::default() }
    }

    /// The same of one that an earlier life of this agent has started.
    pub(super) fn open_alone(pid: i32, group: ExecutorGroup) -> std::io::Result<Self> {
        Ok(Self { alone: true, ..Self::open(pid, true, group)? })
    }

    /// Whether the executor has no supervisor: this is its worker.
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }

    /// The pid of its supervisor, or of its only process, as the agent sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it is the init of a pid namespace of its own.
    #[must_use]
    pub fn pid_namespace(&self) -> bool {
        self.pid_namespace
    }

    /// Whether it still runs: one that has ended and that nobody has waited for does not.
    pub(super) fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&*self.pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Readable: it has ended.
        matches!(poll(&mut fds, Some(&now)), Ok(0))
    }

    /// Whether it ends in this time without being asked.
    pub(super) async fn ends_within(&self, within: Duration) -> bool {
        let Ok(end) = end_of(self.pidfd.clone()) else { return !self.is_alive() };
        tokio::time::timeout(within, end.readable()).await.is_ok()
    }

    /// Waits, for one that has ended, until it is recorded how. A supervisor has done that; a forge does it before the process is gone
    /// altogether.
    pub(super) fn until_recorded(&self) {
        if !self.alone {
            return;
        }
        let deadline = Instant::now() + RECORDED_WITHIN;
        let mut pause = Duration::from_micros(100);
        // A signal does nothing to what has ended.
        while pidfd_send_signal(&*self.pidfd, Signal::CONT).is_ok() && Instant::now() < deadline {
            std::thread::sleep(pause);
            pause *= 2;
        }
    }

    /// Kills everything of the executor at once: its namespace ends with its init, and its group where the kernel ends groups
    /// whole (v2). Without a namespace its session, and its group process by process.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        if !self.pid_namespace {
            // The supervisor leads the session; while its pidfd can be signalled, its id is not somebody else's.
            if pidfd_send_signal(&*self.pidfd, Signal::STOP).is_ok() {
                let _ = killpg(NixPid::from_raw(self.pid), NixSignal::SIGKILL);
            }
        }
        if (!self.pid_namespace || self.group.ends_whole())
            && let Err(e) = self.group.kill()
        {
            tracing::warn!("killing the group of executor {}: {e}", self.group.id());
        }
        let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
    }
}

/// When a process began, in clock ticks since the boot (field 22 of `/proc/PID/stat`).
pub(super) fn start_time(pid: i32) -> std::io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may have anything in it; what is behind it begins with field 3.
    let field = text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(22 - 3)?.parse().ok());
    field.ok_or_else(|| std::io::Error::other(format!("/proc/{pid}/stat does not say when it began")))
}

/// Cleans up after a start that did not come to its end.
#[derive(Debug)]
pub(super) struct Guard {
    group: Option<ExecutorGroup>,
    home: PathBuf,
    process: Option<ProcessHandle>,
}

impl Guard {
    pub(super) fn new(group: ExecutorGroup, home: PathBuf) -> Self {
        Self { group: Some(group), home, process: None }
    }

    pub(super) fn set(&mut self, process: ProcessHandle) {
        self.process = Some(process);
    }

    pub(super) fn process(&self) -> Option<&ProcessHandle> {
        self.process.as_ref()
    }

    pub(super) fn disarm(mut self) -> Option<ProcessHandle> {
        self.group = None;
        self.process.take()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(group) = self.group.take() else { return };
        if let Some(process) = &self.process {
            process.kill();
        }
        remove_later(group, std::mem::take(&mut self.home));
    }
}

/// Becomes readable when the process has ended.
pub(super) fn end_of(pidfd: Arc<OwnedFd>) -> std::io::Result<AsyncFd<Arc<OwnedFd>>> {
    #[expect(unsafe_code, reason = "tokio wants a promise that the descriptor stays open")]
    // SAFETY: the AsyncFd holds a share of the OwnedFd, which nobody can close while it lives.
    let registered = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    registered.map_err(Into::into)
}

/// Waits for the supervisor's end, then finds out why and cleans up.
pub(super) async fn watch(process: ProcessHandle, group: ExecutorGroup, home: PathBuf, limit: Bytes) -> Exit {
    match end_of(process.pidfd.clone()) {
        Ok(fd) => drop(fd.readable().await),
        Err(e) => {
            tracing::warn!("cannot wait for executor {}: {e}; asking again and again", group.id());
            while pidfd_send_signal(&*process.pidfd, Signal::CONT).is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    super::blocking(move || look_back(&process, group, home, limit)).await
}

/// Why it ended; cleans up.
fn look_back(process: &ProcessHandle, group: ExecutorGroup, home: PathBuf, limit: Bytes) -> Exit {
    // Its launcher was its parent, or an earlier life's forge; now that is the host's init, which waits for it. In a container that is this process.
    let _ = waitid(WaitId::PidFd(process.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    process.until_recorded();
    let exit = find_cause(&home, &group, limit);
    let last_words = last_words(&home);
    if process.killed.load(Ordering::Relaxed) {
        tracing::info!(executor = %group.id(), cause = exit.cause, last_words, "an executor was ended");
    } else if exit.code != Some(0) || !last_words.is_empty() {
        tracing::warn!(executor = %group.id(), cause = exit.cause, last_words, "an executor ended");
    }
    // With its namespace all of its processes have ended.
    if process.pid_namespace && group.hand_on() {
        remove_home(&home);
    } else {
        remove_later(group, home);
    }
    exit
}

/// Reads the exit record and the group's counters.
pub(super) fn find_cause(home: &Path, group: &ExecutorGroup, limit: Bytes) -> Exit {
    let record = ExitRecord::load(home).unwrap_or_else(|e| {
        tracing::warn!("exit record of executor {}: {e}", group.id());
        None
    });
    let oom = group.oom_kills().unwrap_or_default() > 0;
    cause(record, oom.then_some(limit))
}

/// Pure: what a record and a memory limit that was reached mean.
fn cause(record: Option<ExitRecord>, out_of_memory: Option<Bytes>) -> Exit {
    let record = record.unwrap_or_default();
    let cause = match (out_of_memory, record.denied_syscall, record.signal, record.code) {
        (Some(limit), ..) => format!("out of memory: the executor's cgroup limit of {limit} was reached"),
        (None, Some(number), ..) => format!("ended by its system call filter: {}", syscalls::describe(number)),
        (None, None, Some(signal), _) => {
            let name = NixSignal::try_from(signal).map_or("an unknown signal", NixSignal::as_str);
            format!("killed by signal {signal} ({name})")
        }
        (None, None, None, Some(code)) => format!("exited with code {code}"),
        (None, None, None, None) => "killed together with its supervisor".to_owned(),
    };
    Exit { cause, signal: record.signal, code: record.code, oom: out_of_memory.is_some() }
}

/// Kills what is left in the groups and removes them and the executor's home (not its tasks' outputs), on a thread of its own:
/// the kernel takes its time with dying processes.
pub(super) fn remove_later(group: ExecutorGroup, home: PathBuf) {
    let remove = move |within| {
        if let Err(e) = group.remove(within) {
            tracing::warn!("removing the groups of executor {}: {e}", group.id());
        }
        remove_home(&home);
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || remove(REMOVE_FOR))),
        Err(_) => remove(Duration::ZERO),
    }
}

fn remove_home(home: &Path) {
    match std::fs::remove_dir_all(home) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => tracing::warn!("removing {}: {e}", home.display()),
        _ => {}
    }
}

/// The end of the executor's stderr, for errors and warnings.
pub(super) fn last_words(home: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = open_plain(&home.join(STDERR_NAME))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_named() {
        let record = |code, signal| Some(ExitRecord { version: 1, code, signal, denied_syscall: None });
        assert_eq!(cause(record(None, Some(9)), None).cause, "killed by signal 9 (SIGKILL)");
        assert_eq!(cause(record(Some(3), None), None).cause, "exited with code 3");
        assert_eq!(cause(None, None).cause, "killed together with its supervisor");
        let exit = cause(record(None, Some(9)), Some(Bytes::mib(64)));
        assert_eq!(exit.cause, "out of memory: the executor's cgroup limit of 64MiB was reached");
        assert!(exit.oom);
        let denied = ExitRecord { denied_syscall: Some(99_999), ..record(Some(159), None).unwrap() };
        assert_eq!(cause(Some(denied), None).cause, "ended by its system call filter: number 99999");
        assert_eq!(cause(record(None, Some(31)), None).cause, "killed by signal 31 (SIGSYS)", "somebody sent it");
        assert_eq!(cause(record(None, Some(4000)), None).cause, "killed by signal 4000 (an unknown signal)");
    }
}
