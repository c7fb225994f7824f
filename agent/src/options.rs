//! What the operator can set.
//!
//! Owns the flags and their defaults. What is not set is detected (see `detect`).

use crate::cgroup::Mode;
use crate::detect::Overrides;
use crate::peer_listen::PeerListen;
use crate::prepare::Budgets;
use crate::process_options::ProcessOptions;
use crate::uids::UidRange;
use smalti_types::{Attributes, Bytes, DurationMs, MilliCpus, MilliUnits, PortSet};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Caches take this part of the disk without another word…
const CACHE_PART: u64 = 4;
/// … but no more than this.
const MAX_CACHE: Bytes = Bytes::gib(10);

/// Options of `smalti agent`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Address of the master
    #[arg(long, value_name = "HOST:PORT", env = "SMALTI_MASTER", default_value = "127.0.0.1:5050")]
    pub master: String,
    /// Where other agents fetch from this one what it holds, an address of this machine that they reach; `off`: they do not
    /// [default: 127.0.0.1:0 where the master is on this machine too, else off]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub peer_listen: Option<PeerListen>,
    /// Where the agent keeps its id, caches and sandboxes
    #[arg(long, value_name = "DIR", env = "SMALTI_AGENT_DATA_DIR", default_value = "/var/lib/smalti/agent")]
    pub data_dir: PathBuf,
    /// Processor cores for tasks [default: those of this machine]
    #[arg(long, value_name = "N")]
    pub cpus: Option<MilliCpus>,
    /// Memory for tasks [default: that of this machine, less the agent's own overhead]
    #[arg(long, value_name = "SIZE")]
    pub mem: Option<Bytes>,
    /// Disk for tasks [default: what is free, less the agent's own overhead]
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<Bytes>,
    /// Where tasks' disks come from
    #[arg(long, value_enum, default_value = "auto")]
    pub disk_backend: crate::disk::Choice,
    /// Ports for tasks [default: 31000-32000]
    #[arg(long, value_name = "RANGES")]
    pub ports: Option<PortSet>,
    /// Other resources, like 'gpus=2;licences=5'
    #[arg(long, value_name = "NAME=AMOUNT;…", default_value = "")]
    pub resources: CustomResources,
    /// Facts that tasks can ask for, like 'zone=eu;rack=r1'
    #[arg(long, value_name = "NAME=VALUE;…", default_value = "")]
    pub attributes: Attributes,
    /// Whether to insist on the kernel's limits
    #[arg(long, value_enum, default_value = "required")]
    pub isolation: Mode,
    /// User ids for executors: each process gets one of its own, and a group of the same number
    #[arg(long, value_name = "FIRST-LAST", default_value_t)]
    pub executor_uids: UidRange,
    /// Let tasks use cpu time that others were given and do not use, by weight instead of a hard limit
    #[arg(long)]
    pub lend_cpu: bool,
    /// The executor's binary [default: smalti-executor beside this program]
    #[arg(long, value_name = "PATH")]
    pub executor: Option<PathBuf>,
    /// This machine's name [default: as the kernel has it]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Agent id, instead of the one kept in the data directory
    #[arg(long, value_name = "ID")]
    pub name: Option<smalti_types::AgentId>,
    /// Outputs of ended tasks are kept up to this size
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub sandbox_budget: Bytes,
    /// Outputs of ended tasks are kept this long at most; also the oldest go while less than --disk-reserve is free
    #[arg(long, value_name = "DURATION", default_value = "168h")]
    pub sandbox_age: DurationMs,
    /// For the disk's sake they do not go before so long after their end: whoever waits for a task reads them then
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub sandbox_grace: DurationMs,
    /// Bundles, compiled code and inputs take at most this much of the disk together, like 20GiB; what was not used for the longest time
    /// goes first, and a task that does not fit beside what is in use waits [default: a quarter of what is free, at most 10GiB]
    #[arg(long, value_name = "SIZE")]
    pub cache_budget: Option<Bytes>,
    /// Most of it for bundles, fetched and unpacked [default: all of --cache-budget]
    #[arg(long, value_name = "SIZE")]
    pub bundles_budget: Option<Bytes>,
    /// Most of it for compiled code [default: all of --cache-budget]
    #[arg(long, value_name = "SIZE")]
    pub compiled_budget: Option<Bytes>,
    /// Most of it for inputs, like 8GiB [default: all of --cache-budget]
    #[arg(long, value_name = "SIZE")]
    pub inputs_budget: Option<Bytes>,
    /// No tasks are taken while less than this is free on the data directory's disk, like 1GiB, and outputs of ended tasks and what no task uses
    /// in the caches go, the oldest first [default: a hundredth of it, at most 256MiB]
    #[arg(long, value_name = "SIZE")]
    pub disk_reserve: Option<Bytes>,
    /// Slots of an executor: tasks that it runs at once [default: 32, and more in a framework's further ones, as the host's limits on open files,
    /// memory maps and threads allow]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots_per_executor: Option<u32>,
    /// Which tasks get a process of their own.
    #[command(flatten)]
    pub process: ProcessOptions,
    /// How long tasks may go on after SIGTERM or SIGINT: launches are refused, items that nobody has begun with go back, and what runs then is
    /// ended. A second signal ends everything at once
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub drain_timeout: DurationMs,
    /// Leave tasks running when the agent is stopped, as when it is killed: the next one takes them up again. For upgrades
    #[arg(long)]
    pub keep_tasks: bool,
    /// How long executors go on without an agent before they end themselves
    #[arg(long, value_name = "DURATION", default_value = "15min")]
    pub recovery_timeout: DurationMs,
    /// Directories below which file:// bundles and inputs may lie (repeatable)
    #[arg(long, value_name = "DIR")]
    pub file_root: Vec<PathBuf>,
    /// From where and for whom things are fetched.
    #[command(flatten)]
    pub fetch: smalti_fetch::FetchOptions,
    /// Where tasks with ports listen: 0.0.0.0, or an address of this machine, lets others reach them
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub task_listen: std::net::IpAddr,
    /// Where tasks of each role may connect to, see docs/network.md [default: public addresses]
    #[arg(long, value_name = "FILE")]
    pub network_policy: Option<PathBuf>,
    /// A service of the cluster that no task may reach, beside the master (repeatable)
    #[arg(long, value_name = "HOST:PORT")]
    pub protect: Vec<String>,
}

impl Options {
    /// The part that replaces what would be detected.
    #[must_use]
    pub fn overrides(&self) -> Overrides {
        Overrides {
            cpus: self.cpus,
            mem: self.mem,
            disk: self.disk,
            ports: self.ports.clone(),
            custom: self.resources.0.clone(),
            pool_memory: self.process.pool_memory(),
            disk_kept: Bytes(0),
        }
    }

    /// What the caches may take.
    pub(crate) fn budgets(&self, data_dir: &std::path::Path) -> Budgets {
        let total = self.cache_budget.unwrap_or_else(|| {
            let free = crate::watermark::room(data_dir).map_or(0, |(free, _)| free);
            let have = free.saturating_add(crate::prepare::cached(data_dir).0);
            Bytes((have / CACHE_PART).min(MAX_CACHE.0))
        });
        let of = |kind: Option<Bytes>| kind.unwrap_or(total);
        Budgets { total, kinds: [of(self.bundles_budget), of(self.compiled_budget), of(self.inputs_budget)] }
    }
}

/// Custom scalars as they are written on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CustomResources(pub BTreeMap<Arc<str>, MilliUnits>);

/// Why a text is not a list of custom resources.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CustomResourcesError {
    /// Not `name=amount`.
    #[error("`{0}` is not a resource: write it like gpus=2;licences=5")]
    Form(String),
    /// A resource with a flag of its own.
    #[error("{0} has a flag of its own: --{0}")]
    Builtin(String),
    /// Not an amount.
    #[error("{name}: {source}")]
    Amount {
        /// Of which resource.
        name: String,
        /// What is wrong.
        source: smalti_types::amount::AmountError,
    },
}

impl std::str::FromStr for CustomResources {
    type Err = CustomResourcesError;

    fn from_str(text: &str) -> Result<Self, CustomResourcesError> {
        let mut all = BTreeMap::new();
        for part in text.split(';').map(str::trim).filter(|p| !p.is_empty()) {
            let form = || CustomResourcesError::Form(part.to_owned());
            let (name, amount) = part.split_once('=').ok_or_else(form)?;
            let name = name.trim();
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
                return Err(form());
            }
            if matches!(name, "cpus" | "mem" | "disk" | "ports") {
                return Err(CustomResourcesError::Builtin(name.to_owned()));
            }
            let amount = amount.parse().map_err(|source| CustomResourcesError::Amount { name: name.to_owned(), source })?;
            all.insert(name.into(), amount);
        }
        Ok(Self(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_resources_are_read_and_nonsense_is_named() {
        let all: CustomResources = "gpus=2; licences=0.5;".parse().unwrap();
        assert_eq!((all.0["gpus"], all.0["licences"]), (MilliUnits(2000), MilliUnits(500)));
        for (bad, why) in [("gpus", "like gpus=2"), ("cpus=2", "--cpus"), ("gpus=-1", "negative"), ("=1", "like"), ("a b=1", "like")] {
            let error = bad.parse::<CustomResources>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
