//! Where disks come from: ext4 on a loop device, or memory.
//!
//! Owns the choice, which is made once, by really making a disk and writing past its end. Deliberately absent: how either is made.

use super::BLOCK;
use super::ext4::Ext4;
use super::mount::{Error, Mounted};
use super::tmpfs::Tmpfs;
use smalti_types::Bytes;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Size of the disk that is made to find out whether that works.
const PROBE: Bytes = Bytes(64 << 10);

/// `--disk-backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Choice {
    /// Files below the data directory where that works, else memory, else none; the agent says which
    #[default]
    Auto,
    /// ext4 in files below the data directory, on loop devices
    Loop,
    /// Memory: what is advertised as disk is no memory for tasks
    Tmpfs,
    /// None: tasks that ask for disk do not run here
    None,
}

/// Makes disks.
pub(super) trait Backend: std::fmt::Debug + Send + Sync {
    /// For people.
    fn name(&self) -> &'static str;
    /// Whether what is written lies in memory, charged to the executor that writes it.
    fn in_memory(&self) -> bool;
    /// A new, empty disk of `size`, a whole number of blocks. May take tens of milliseconds.
    ///
    /// # Errors
    /// Which step failed, and why.
    fn make(&self, size: Bytes) -> Result<Mounted, Error>;
}

/// What was found: a backend that works, or why there is none.
pub(super) type Found = Result<Arc<dyn Backend>, String>;

/// Finds the backend that `choice` asks for.
///
/// # Errors
/// A backend that was named, not left to us, and does not work.
pub(super) fn open(choice: Choice, data_dir: &Path) -> Result<Found, Error> {
    let on_loop = || -> Result<Arc<dyn Backend>, Error> { tried(Arc::new(Ext4::open(data_dir)?)) };
    let in_memory = || tried(Arc::new(Tmpfs));
    Ok(match choice {
        Choice::None => Err("turned off with --disk-backend none".into()),
        Choice::Loop => Ok(on_loop()?),
        Choice::Tmpfs => Ok(in_memory()?),
        Choice::Auto => on_loop().or_else(|first| {
            in_memory().map_err(|second| format!("{first}; {second}")).inspect(|_| tracing::warn!("disks of tasks lie in memory: {first}"))
        }),
    })
}

/// Makes a disk, fills it, and checks that it ends where it should.
fn tried(backend: Arc<dyn Backend>) -> Result<Arc<dyn Backend>, Error> {
    let made = backend.make(PROBE)?;
    let wrote = fill(&made).map_err(|e| Error::new("writing to", backend.name(), e))?;
    if wrote == 0 || wrote > PROBE.0 + BLOCK {
        return Err(Error::new("limiting", backend.name(), std::io::Error::other(format!("{wrote} bytes fit into {} bytes", PROBE.0))));
    }
    Ok(backend)
}

/// Writes until nothing fits any more; gives the bytes that did.
fn fill(made: &Mounted) -> std::io::Result<u64> {
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(made.root(), "probe", flags, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?);
    let mut wrote = 0;
    loop {
        match file.write(&[0; 4096]) {
            Ok(n) => wrote += n as u64,
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOSPC) => return Ok(wrote),
            Err(e) => return Err(e),
        }
        if wrote > 2 * PROBE.0 {
            return Ok(wrote);
        }
    }
}
