//! How many executors and slots this host has room for: what its limits on memory maps, open files and threads allow.
//!
//! Reading is here, arithmetic is in pure functions. Owns the rules of thumb. Deliberately absent: which framework gets them.

use crate::cgroup::{Controller, own_groups};
use nix::sys::resource::{Resource, getrlimit};
use smalti_agent_core::Parameters;
use smalti_types::Bytes;
use std::path::{Path, PathBuf};

/// Slots of a framework's first executor, unless the operator says otherwise: enough for many small tasks on a few cores, and soon started.
const FIRST_SLOTS: u32 = 32;
/// Executors with more slots than this take long to start, and many tasks end with one that crashes.
const LARGEST: u32 = 128;
/// Memory maps that a slot may need; an executor that might need more than half of its limit has no memory pool.
const MAPS_PER_SLOT: u64 = 24;
/// Descriptors of an executor beside its slots', and of one slot whose guest may have 128 files open.
const FILES_PER_EXECUTOR: u64 = 256;
const FILES_PER_SLOT: u64 = 192;
/// What an executor may have open, whatever the host allows: it limits itself to that.
const MOST_FILES: u64 = 65_536;
/// Threads of an executor beside its slots': launcher, supervisor, worker, and three that serve it.
const THREADS_PER_EXECUTOR: u64 = 8;
/// A slot's own thread, and one that waits for a file now and then.
const THREADS_PER_SLOT: u64 = 2;
/// Of the threads that the host can still have, executors may take seven eighths.
const THREADS_PART: (u64, u64) = (7, 8);
/// Descriptors of the agent for one executor: its connection, its process, what is on its way to it; and those for everything else.
const AGENT_FILES_PER_EXECUTOR: u64 = 16;
const AGENT_FILES: u64 = 1_024;
/// What an idle executor takes of the machine, of which idle ones may take an eighth.
const MEMORY_PER_EXECUTOR: u64 = 8 << 20;
const MEMORY_PART: u64 = 8;
/// Whatever the host says, there are this many: less is no use.
const FEWEST_EXECUTORS: u64 = 4;

/// What the host allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory maps of one process.
    maps: u64,
    /// Open files of one process.
    files: u64,
    /// Threads that could still be started.
    threads: u64,
}

/// What there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Slots of a framework's first executor.
    pub first: u32,
    /// Of a further one, at most.
    pub grown: u32,
    /// Of the largest, which an array part alone may fill.
    pub largest: u32,
    /// Shared executors at once.
    pub executors: u32,
    /// Slots of all shared executors together.
    pub slots: u32,
}

impl Limits {
    /// As the kernel and the control groups around this process have them.
    #[must_use]
    pub fn read() -> Self {
        let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|s| s.trim().parse::<u64>().ok());
        // `0.50 0.40 0.30 running/all last`
        let all = std::fs::read_to_string("/proc/loadavg").ok();
        let all = all.as_deref().and_then(|s| s.split(['/', ' ']).nth(4)?.parse::<u64>().ok()).unwrap_or_default();
        let most = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
        let kernel = most.into_iter().flatten().min().unwrap_or(32_768).saturating_sub(all);
        let (v1, v2) = own_groups();
        let groups = v1.get(&Controller::Pids).map(|d| free_in_groups(d)).into_iter().chain(v2.as_deref().map(free_in_groups));
        Self {
            maps: number("/proc/sys/vm/max_map_count").unwrap_or(65_530),
            files: getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(_, hard)| hard),
            threads: groups.flatten().fold(kernel, u64::min),
        }
    }
}

impl std::fmt::Display for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} memory maps and {} open files of a process, {} more threads", self.maps, self.files, self.threads)
    }
}

/// What a group and those above it leave of the threads that they allow.
fn free_in_groups(group: &Path) -> Option<u64> {
    let number = |dir: &Path, file: &str| std::fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
    let mut free = None;
    let mut dir: Option<PathBuf> = Some(group.to_owned());
    while let Some(d) = dir {
        // `max` is no number: no limit.
        if let Some(most) = number(&d, "pids.max") {
            let here = most.saturating_sub(number(&d, "pids.current").unwrap_or_default());
            free = Some(free.map_or(here, |f: u64| f.min(here)));
        }
        dir = d.parent().map(Path::to_owned);
    }
    free
}

impl Capacity {
    /// With these limits, where tasks have `memory` and there are up to `processes` executors of class `process`. `fixed`: what the
    /// operator says that executors have.
    #[must_use]
    pub fn of(limits: &Limits, memory: Bytes, processes: u32, fixed: Option<u32>) -> Self {
        let by_maps = limits.maps / 2 / MAPS_PER_SLOT;
        let by_files = limits.files.min(MOST_FILES).saturating_sub(FILES_PER_EXECUTOR) / FILES_PER_SLOT;
        let largest = small(by_maps.min(by_files)).min(LARGEST).max(fixed.unwrap_or(FIRST_SLOTS));
        let first = fixed.unwrap_or(FIRST_SLOTS);
        let own = (THREADS_PER_EXECUTOR + THREADS_PER_SLOT).saturating_mul(processes.into());
        let threads = (limits.threads / THREADS_PART.1 * THREADS_PART.0).saturating_sub(own);
        let by_threads = threads / (THREADS_PER_EXECUTOR + THREADS_PER_SLOT * u64::from(first));
        let by_agent = limits.files.min(MOST_FILES).saturating_sub(AGENT_FILES) / AGENT_FILES_PER_EXECUTOR;
        let by_memory = memory.0 / MEMORY_PART / MEMORY_PER_EXECUTOR;
        let executors = by_threads.min(by_agent).min(by_memory).max(FEWEST_EXECUTORS);
        let slots = threads.saturating_sub(executors * THREADS_PER_EXECUTOR) / THREADS_PER_SLOT;
        let slots = slots.max(FEWEST_EXECUTORS * u64::from(first));
        Self { first, grown: if fixed.is_some() { first } else { largest }, largest, executors: small(executors), slots: small(slots) }
    }

    /// The core's parameters with these.
    #[must_use]
    pub fn apply(&self, parameters: Parameters) -> Parameters {
        Parameters {
            slots_per_executor: self.first,
            grown_slots: self.grown,
            most_slots_per_executor: self.largest,
            most_executors: self.executors,
            most_slots: self.slots,
            ..parameters
        }
    }
}

impl std::fmt::Display for Capacity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} executors with {} slots, {} to {} each", self.executors, self.slots, self.first, self.largest)
    }
}

fn small(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Limits = Limits { maps: 65_530, files: 20_000, threads: 32_000 };

    #[test]
    fn ten_thousand_tasks_have_room_on_an_ordinary_host() {
        let capacity = Capacity::of(&HOST, Bytes::gib(64), 64, None);
        assert_eq!((capacity.first, capacity.largest), (32, 102), "by open files");
        assert!(capacity.slots >= 10_000 && capacity.executors > 64, "{capacity}");
        let threads = u64::from(capacity.slots) * THREADS_PER_SLOT + u64::from(capacity.executors) * THREADS_PER_EXECUTOR;
        assert!(threads <= HOST.threads, "{capacity}");
    }

    #[test]
    fn each_limit_is_kept_to() {
        let of = |limits: Limits| Capacity::of(&limits, Bytes::gib(64), 64, None);
        assert_eq!(of(Limits { files: 1_000_000, ..HOST }).largest, LARGEST);
        assert_eq!(of(Limits { maps: 2_400, ..HOST }).largest, 50);
        let closed = of(Limits { files: 1_024, ..HOST });
        assert_eq!((closed.largest, closed.grown, closed.executors), (32, 32, 4));
        let few = of(Limits { threads: 2_000, ..HOST });
        assert!(few.executors < 20 && few.slots < 800, "{few}");
        assert_eq!(Capacity::of(&HOST, Bytes::gib(1), 64, None).executors, 16, "by memory");
        let fixed = Capacity::of(&HOST, Bytes::gib(64), 64, Some(200));
        assert_eq!((fixed.first, fixed.grown, fixed.largest), (200, 200, 200));
    }

    #[test]
    fn the_innermost_and_the_groups_above_count() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        assert_eq!(free_in_groups(&inner), None);
        for (d, most, now) in
            [(dir.path().to_owned(), "100\n", "70\n"), (dir.path().join("a"), "max\n", "9\n"), (inner.clone(), "50\n", "9\n")]
        {
            std::fs::write(d.join("pids.max"), most).unwrap();
            std::fs::write(d.join("pids.current"), now).unwrap();
        }
        assert_eq!(free_in_groups(&inner), Some(30));
        assert!(Limits::read().threads > 0 && Limits::read().files > 0);
    }
}
