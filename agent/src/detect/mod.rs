//! What this node has: resources to advertise and attributes to be chosen by.
//!
//! What the operator sets by flag is advertised as it is. What is detected is advertised less the overhead of agent, executors
//! and compiler, which appears in no account: it is reported beside the total. Reading is here, arithmetic is in pure functions.

mod attributes;
mod capacity;
mod memory;

pub use attributes::{attributes, boot_id, hostname};
pub use capacity::{Capacity, Limits};

use smalti_types::{Bytes, MilliCpus, MilliUnits, PortRange, PortSet, Resources};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Memory of the agent process: connections, queues, statuses not yet acknowledged, caches of digests.
const AGENT_MEMORY: Bytes = Bytes::mib(128);
/// Memory of executors beside their tasks': code, pools kept resident, output buffers of slots.
const EXECUTORS_MEMORY: Bytes = Bytes::mib(256);
/// Memory of compiler processes, of which two run at a time on a node of up to five cores.
const COMPILER_MEMORY: Bytes = Bytes::gib(crate::prepare::LEAST_COMPILERS as u64);
/// On small nodes overhead takes at most this part of the memory.
const MAX_OVERHEAD_PART: u64 = 4;
/// Ports when none are named: those that Mesos offers, above well-known and below ephemeral ones.
pub const DEFAULT_PORTS: PortRange = PortRange { first: 31_000, last: 32_000 };

/// What the operator sets instead of what is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// `--cpus`
    pub cpus: Option<MilliCpus>,
    /// `--mem`
    pub mem: Option<Bytes>,
    /// `--disk`
    pub disk: Option<Bytes>,
    /// `--ports`
    pub ports: Option<PortSet>,
    /// `--resource NAME=AMOUNT`
    pub custom: BTreeMap<Arc<str>, MilliUnits>,
    /// Disk that is free now and will be the caches', or must stay free: overhead.
    pub disk_kept: Bytes,
    /// What executors kept ready for class `process` take: overhead, too.
    pub pool_memory: Bytes,
}

/// What the agent advertises, and what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// For tasks.
    pub total: Resources,
    /// For agent, executors and compiler. No cpu is kept: it is shared by weight (a sixteenth of the node's while all want it, see
    /// `cgroup::cpu::work_weight`) and none of them needs it while idle; a fraction taken off would cost small nodes a whole
    /// one-cpu task.
    pub overhead: Resources,
}

/// Why a node's resources cannot be found out.
#[derive(Debug, thiserror::Error)]
#[error("cannot find out {what} ({}): {source}. Set it with {flag}", path.display())]
pub struct Error {
    what: &'static str,
    path: PathBuf,
    flag: &'static str,
    source: std::io::Error,
}

/// What the node has on hand, as far as it must be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    cpus: MilliCpus,
    memory: Bytes,
    disk: Bytes,
}

/// Reads what the node has. `data_dir` must exist: its file system is where tasks write.
///
/// # Errors
/// When something that no flag sets cannot be read.
pub fn resources(overrides: &Overrides, data_dir: &Path) -> Result<Detected, Error> {
    let failed = |what, path: &Path, flag| {
        let path = path.to_owned();
        move |source| Error { what, path, flag, source }
    };
    let cpus = match overrides.cpus {
        Some(cpus) => cpus,
        // Knows the affinity mask and the cpu quota of the control group.
        None => {
            let n = std::thread::available_parallelism().map_err(failed("the number of cpus", Path::new("/proc"), "--cpus"))?;
            MilliCpus(n.get() as u64 * 1000)
        }
    };
    let memory = match overrides.mem {
        Some(mem) => mem,
        None => memory::available().map_err(failed("the memory", Path::new("/proc/meminfo"), "--mem"))?,
    };
    let disk = match overrides.disk {
        Some(disk) => disk,
        None => free_disk(data_dir).map_err(failed("the free disk space", data_dir, "--disk"))?,
    };
    Ok(advertise(overrides, Node { cpus, memory, disk }))
}

/// Pure: less the overhead where nothing was set.
fn advertise(overrides: &Overrides, node: Node) -> Detected {
    let wanted = (AGENT_MEMORY.0 + EXECUTORS_MEMORY.0 + COMPILER_MEMORY.0).saturating_add(overrides.pool_memory.0);
    let memory_overhead = if overrides.mem.is_some() { wanted } else { wanted.min(node.memory.0 / MAX_OVERHEAD_PART) };
    let disk_overhead = overrides.disk_kept.0.min(node.disk.0);
    let less = |set: bool, have: u64, overhead: u64| if set { have } else { have.saturating_sub(overhead) };
    let total = Resources {
        cpus: node.cpus,
        mem: Bytes(less(overrides.mem.is_some(), node.memory.0, memory_overhead)),
        disk: Bytes(less(overrides.disk.is_some(), node.disk.0, disk_overhead)),
        ports: overrides.ports.clone().unwrap_or_else(|| [DEFAULT_PORTS].into_iter().collect()),
        custom: overrides.custom.iter().filter(|(_, a)| a.0 > 0).map(|(n, a)| (n.clone(), *a)).collect(),
    };
    let overhead = Resources { mem: Bytes(memory_overhead), disk: Bytes(disk_overhead), ..Resources::default() };
    Detected { total, overhead }
}

/// What the memory overhead consists of, by name: on small nodes each part is less in proportion.
#[must_use]
pub fn overhead_parts(overhead: Bytes, pool_memory: Bytes) -> BTreeMap<String, u64> {
    let parts = [("agent", AGENT_MEMORY), ("executors", EXECUTORS_MEMORY), ("compiler", COMPILER_MEMORY), ("process_pool", pool_memory)];
    let whole: u128 = parts.iter().map(|(_, part)| u128::from(part.0)).sum();
    let share = |part: Bytes| u64::try_from(u128::from(part.0) * u128::from(overhead.0) / whole).unwrap_or(u64::MAX);
    parts.into_iter().map(|(name, part)| (name.to_owned(), share(part))).collect()
}

/// What an ordinary user may still write, in whole MiB.
fn free_disk(path: &Path) -> std::io::Result<Bytes> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let bytes = stat.blocks_available().saturating_mul(stat.fragment_size());
    Ok(Bytes(bytes & !((1 << 20) - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Node = Node { cpus: MilliCpus(2000), memory: Bytes::gib(24), disk: Bytes::gib(200) };

    #[test]
    fn what_is_set_is_advertised_whole() {
        let set = Overrides {
            cpus: Some(MilliCpus(4000)),
            mem: Some(Bytes::gib(4)),
            disk: Some(Bytes::gib(1)),
            ports: Some("8000-8001".parse().unwrap()),
            custom: BTreeMap::from([("gpus".into(), MilliUnits(1000)), ("none".into(), MilliUnits(0))]),
            pool_memory: Bytes::mib(4),
            disk_kept: Bytes::mib(100),
        };
        let node = Node { cpus: MilliCpus(4000), memory: Bytes::gib(4), disk: Bytes::gib(1) };
        let Detected { total, overhead } = advertise(&set, node);
        assert_eq!((total.cpus, total.mem, total.disk), (MilliCpus(4000), Bytes::gib(4), Bytes::gib(1)));
        assert_eq!((total.ports.len(), total.custom("gpus"), total.custom.len()), (2, MilliUnits(1000), 1));
        assert_eq!(overhead.mem, Bytes::mib(2436));
    }

    #[test]
    fn what_is_detected_is_advertised_less_the_overhead() {
        let kept = Overrides { disk_kept: Bytes::gib(12), ..Overrides::default() };
        let Detected { total, overhead } = advertise(&kept, NODE);
        assert_eq!(overhead.disk, kept.disk_kept);
        assert_eq!(advertise(&Overrides { disk_kept: Bytes(u64::MAX), ..kept }, NODE).total.disk, Bytes(0));
        assert_eq!(total.mem.0 + overhead.mem.0, NODE.memory.0);
        assert_eq!(total.disk.0 + overhead.disk.0, NODE.disk.0);
        assert_eq!((total.cpus, total.ports.len()), (MilliCpus(2000), 1001));
        let small = advertise(&Overrides::default(), Node { memory: Bytes::mib(512), ..NODE });
        assert_eq!(small.overhead.mem, Bytes::mib(128));
        let with_pool = Overrides { pool_memory: Bytes::mib(4), ..Overrides::default() };
        let overhead = advertise(&with_pool, NODE).overhead;
        let parts = overhead_parts(overhead.mem, with_pool.pool_memory);
        assert_eq!((parts["agent"], parts.values().sum::<u64>()), (AGENT_MEMORY.0, overhead.mem.0));
        assert_eq!(parts["process_pool"], 4 << 20);
        assert_eq!(overhead_parts(small.overhead.mem, Bytes(0))["compiler"], 2048 * (128 << 20) / 2432);
    }

    #[test]
    fn this_node_has_something() {
        let dir = tempfile::tempdir().unwrap();
        let found = resources(&Overrides::default(), dir.path()).unwrap();
        assert!(found.total.cpus.0 >= 1000 && found.total.mem > Bytes::mib(64), "{found:?}");
        let error = resources(&Overrides::default(), Path::new("/nowhere")).unwrap_err();
        assert!(error.to_string().contains("--disk"), "{error}");
    }
}
