//! Namespaces that are made once, by the forge, for all executors of class `process` without sockets.
//!
//! Owns three: mounts in which there is nothing but an empty, read-only root; a net namespace in which nothing ever is, not even an address;
//! and the forge's own pid namespace, to come back to. Each executor's supervisor enters the first two, then leaves them into its own: its
//! mount namespace is a copy with that one mount, so there is no old root to be taken away. The net namespace is common to all of them. It
//! belongs to the host's user namespace, in which none of them has a right, so nobody can put anything into it; that they do not reach
//! each other by it is what the filter (no sockets at all) and Landlock (no abstract names, no TCP) see to, as before. Making one
//! for each, and its end, which the kernel does under a lock for the whole machine, cost a tenth of a start.
//! Deliberately absent: who enters (`direct`).

use super::fork::{self, Image};
use crate::confine::{namespaces, root};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

/// What the forge holds of them.
#[derive(Debug)]
pub(super) struct Mold {
    mounts: File,
    network: File,
    pids: File,
    /// `/proc`, which is not to be seen in those mounts.
    proc: File,
}

/// What a supervisor gets of them.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) mounts: OwnedFd,
    pub(super) network: OwnedFd,
    pub(super) proc: OwnedFd,
}

impl Mold {
    /// Makes them. This process must have one thread and be privileged.
    ///
    /// # Errors
    /// What does not work here; then each executor's launcher and supervisor make all that they need.
    pub(super) fn make() -> io::Result<Self> {
        let (from_us, mut to_maker) = io::pipe()?;
        let (mut from_maker, to_us) = io::pipe()?;
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        let maker = fork::fork(&["mold".into()], vec![from_us.into(), to_us.into(), stderr], Image::Copied, fill)?;
        let mut said = [0];
        let made = match from_maker.read(&mut said) {
            Ok(1) => Self::of(maker),
            Ok(_) => Err(io::Error::other("namespaces cannot be made, entered or left")),
            Err(e) => Err(e),
        };
        // It may end now, if it has not.
        let _ = to_maker.write_all(&said);
        let ended = waitpid(maker, None);
        let mold = made?;
        if !matches!(ended?, WaitStatus::Exited(_, 0)) {
            return Err(io::Error::other("who has entered the namespaces cannot leave them again"));
        }
        // Whether one can come back: it has to be done after each executor.
        mold.come_back()?;
        Ok(mold)
    }

    fn of(maker: Pid) -> io::Result<Self> {
        let open = |name: &str| File::open(format!("/proc/{maker}/ns/{name}"));
        Ok(Self { mounts: open("mnt")?, network: open("net")?, pids: File::open("/proc/self/ns/pid")?, proc: File::open("/proc")? })
    }

    /// The next child of this process is the first one of a new pid namespace.
    pub(super) fn leave_pids() -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWPID)
    }

    /// The next child of this process is one like this process.
    pub(super) fn come_back(&self) -> nix::Result<()> {
        setns(&self.pids, CloneFlags::CLONE_NEWPID)
    }

    /// Descriptors for one that enters.
    pub(super) fn entry(&self) -> io::Result<[OwnedFd; 3]> {
        let of = |file: &File| file.as_fd().try_clone_to_owned();
        Ok([of(&self.mounts)?, of(&self.network)?, of(&self.proc)?])
    }
}

impl Entry {
    /// Goes where nothing is. This process must have one thread.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn enter(&self) -> nix::Result<()> {
        setns(&self.network, CloneFlags::CLONE_NEWNET)?;
        setns(&self.mounts, CloneFlags::CLONE_NEWNS)
    }
}

/// In a process of its own: makes the mounts and the net namespace, waits until somebody holds them, and tries to leave them as executors do.
fn fill() -> ExitCode {
    let made = unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string());
    let emptied = made.and_then(|()| root::prepare()).and_then(|()| root::empty());
    if let Err(e) = emptied.and_then(|()| tell().map_err(|e| e.to_string())) {
        eprintln!("smalti-executor: namespaces for all executors of class `process` are not to be had: {e}");
        return ExitCode::FAILURE;
    }
    match namespaces::leave_but_net() {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn tell() -> io::Result<()> {
    io::stdout().write_all(b"x")?;
    io::stdout().flush()?;
    io::stdin().read(&mut [0]).map(drop)
}
