//! Resource limits of an executor's processes: set by the supervisor for itself, inherited by the worker, never raised again.

use super::open_wall;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Open files of a worker: its tasks' inputs, directories and outputs. Above the usual soft limit of 1024, below what would let
/// one executor use up the host's table.
const MAX_OPEN_FILES: u64 = 65_536;

/// What depends on the executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Processes and threads of its user together; `None` where it has no user of its own, whose other processes would count.
    pub(crate) threads: Option<u64>,
    /// Longest file in bytes that it can make: the size of the file system that its outputs lie on, so that nobody makes a sparse file
    /// that overwhelms whoever reads it. No bound on how much it writes: less would be in the way of outputs and disks of that size.
    /// `None`: as inherited.
    pub(crate) file_bytes: Option<u64>,
}

/// Sets them, soft and hard alike; those that cannot be set are named.
pub(crate) fn set(limits: Limits, warnings: &mut Vec<String>) {
    let fixed = [
        ("core files", Resource::RLIMIT_CORE, Some(0)),
        ("open files", Resource::RLIMIT_NOFILE, Some(MAX_OPEN_FILES)),
        ("locked memory", Resource::RLIMIT_MEMLOCK, Some(0)),
        ("message queues", Resource::RLIMIT_MSGQUEUE, Some(0)),
        ("threads", Resource::RLIMIT_NPROC, limits.threads),
        ("file size", Resource::RLIMIT_FSIZE, limits.file_bytes),
    ];
    for (name, resource, limit) in fixed {
        let Some(limit) = limit else { continue };
        let set = getrlimit(resource).and_then(|(_, hard)| setrlimit(resource, hard.min(limit), hard.min(limit)));
        if let Err(e) = set {
            let layer = if resource == Resource::RLIMIT_CORE { "core_dumps" } else { "rlimits" };
            warnings.push(open_wall(layer, format!("{name}: {e}")));
        }
    }
}
