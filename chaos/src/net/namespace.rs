//! A network namespace without a name: it is there as long as somebody is in it or holds it open, so the kernel takes it away after
//! whatever end of this program.

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// The calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A namespace, held open.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// A new one, in which not even the loopback interface is up.
    pub(crate) fn new() -> Result<Self> {
        on_a_thread(|| {
            leave()?;
            File::open(OWN).with_context(|| format!("opening {OWN}")).map(Self)
        })
    }

    /// Does `work` on a thread of its own in here. What it starts or binds stays here.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
            work()
        })
    }

    /// Under what path other processes can open it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Its number, as `/proc/PID/ns/net` says it of who is in it.
    pub(crate) fn inode(&self) -> Result<u64> {
        Ok(self.0.metadata().context("asking for a namespace's number")?.ino())
    }
}

/// Puts the calling thread, and what it starts from now on, into a new namespace.
pub(crate) fn leave() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join()).map_err(|_| anyhow!("a thread in a network namespace panicked"))?
}
