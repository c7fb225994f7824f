//! Namespaces that are made by the forge, for executors of class `process` without sockets.
//!
//! Owns mounts in which there is nothing but an empty, read-only root; net namespaces in which nothing ever is, not even an address; and the
//! forge's own pid namespace, to come back to. Each executor enters the mounts and a net namespace that no other has now, then
//! leaves all but the latter into its own: its mount namespace is a copy with that one mount, so there is no old root to be taken away. A
//! net namespace is the next executor's when its process, the first of its pid namespace, has been waited for: then nothing lives that
//! was ever in it. It belongs to the host's user namespace, in which no executor has a right, so nobody can have put anything into it. Making one
//! for each, and its end, which the kernel does under a lock for the whole machine, cost a tenth of a start.
//! Deliberately absent: who enters (`alone`).

use super::fork::{self, Image};
use crate::confine::{identity, namespaces, root};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

/// The user as which it is tried.
const NOBODY: u32 = 65_534;

/// What the forge holds of them.
#[derive(Debug)]
pub(super) struct Mold {
    mounts: File,
    /// Net namespaces in which nobody is, and those that an executor has, by its pid.
    free: Vec<File>,
    lent: HashMap<i32, File>,
    /// The forge's own.
    network: File,
    pids: File,
    /// `/proc`, which is not to be seen in those mounts.
    proc: File,
}

/// What an executor gets of them.
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
        setns(&mold.network, CloneFlags::CLONE_NEWNET)?;
        Ok(mold)
    }

    fn of(maker: Pid) -> io::Result<Self> {
        let open = |name: &str| File::open(format!("/proc/{maker}/ns/{name}"));
        let own = |name: &str| File::open(format!("/proc/self/ns/{name}"));
        let (free, lent) = (vec![open("net")?], HashMap::new());
        Ok(Self { mounts: open("mnt")?, free, lent, network: own("net")?, pids: own("pid")?, proc: File::open("/proc")? })
    }

    /// The next child of this process is the first one of a new pid namespace.
    pub(super) fn leave_pids() -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWPID)
    }

    /// The next child of this process is one like this process.
    pub(super) fn come_back(&self) -> nix::Result<()> {
        setns(&self.pids, CloneFlags::CLONE_NEWPID)
    }

    /// A net namespace in which nobody is.
    ///
    /// # Errors
    /// The outer one: this process is in the wrong one and cannot come back. The inner one: none can be made.
    pub(super) fn take_network(&mut self) -> nix::Result<io::Result<File>> {
        if let Some(network) = self.free.pop() {
            return Ok(Ok(network));
        }
        if let Err(e) = unshare(CloneFlags::CLONE_NEWNET) {
            return Ok(Err(e.into()));
        }
        let made = File::open("/proc/self/ns/net");
        setns(&self.network, CloneFlags::CLONE_NEWNET)?;
        Ok(made)
    }

    /// This executor has it, until it has been waited for.
    pub(super) fn lend(&mut self, executor: Pid, network: File) {
        self.lent.insert(executor.as_raw(), network);
    }

    /// Nobody has entered it.
    pub(super) fn give_back(&mut self, network: File) {
        self.free.push(network);
    }

    /// A child of this process has been waited for.
    pub(super) fn has_ended(&mut self, child: Pid) {
        self.free.extend(self.lent.remove(&child.as_raw()));
    }

    /// Descriptors for one that enters.
    pub(super) fn entry(&self, network: &File) -> io::Result<[OwnedFd; 3]> {
        let of = |file: &File| file.as_fd().try_clone_to_owned();
        Ok([of(&self.mounts)?, of(network)?, of(&self.proc)?])
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

/// In a process of its own: makes the mounts and a net namespace, waits until somebody holds them, and tries what executors do then.
fn fill() -> ExitCode {
    let made = File::open("/proc").map_err(|e| e.to_string()).and_then(|proc| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())?;
        root::prepare()?;
        root::empty()?;
        tell().map_err(|e| e.to_string())?;
        Ok(proc)
    });
    let tried = made.and_then(|proc| {
        // Some kernels let only privileged users have a user namespace, or rights in it.
        identity::become_user(NOBODY)?;
        identity::own_proc_files()?;
        namespaces::leave_but_net().map_err(|e| format!("leaving namespaces as user {NOBODY}: {e}"))?;
        namespaces::write_own_maps(&proc, Uid::from_raw(NOBODY), Gid::from_raw(NOBODY))
    });
    match tried {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("smalti-executor: executors of class `process` start with a launcher and namespaces for each: {e}");
            ExitCode::FAILURE
        }
    }
}

fn tell() -> io::Result<()> {
    io::stdout().write_all(b"x")?;
    io::stdout().flush()?;
    io::stdin().read(&mut [0]).map(drop)
}
