//! Where groups lie: one directory per controller on v1, one for all on v2.

use super::{Error, files, v2};
use smalti_types::ExecutorId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What the kernel can limit or count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// Cpu time.
    Cpu,
    /// Counting cpu time; part of `cpu` on v2.
    CpuAcct,
    /// Memory.
    Memory,
    /// Number of threads.
    Pids,
    /// The v2 hierarchy itself: membership, kill.
    Core,
}

impl Controller {
    /// All that v1 mounts by name.
    pub(super) const V1: [Self; 4] = [Self::Cpu, Self::CpuAcct, Self::Memory, Self::Pids];
    const ALL: [Self; 5] = [Self::Cpu, Self::CpuAcct, Self::Memory, Self::Pids, Self::Core];

    /// The kernel's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuAcct => "cpuacct",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Core => "cgroup",
        }
    }
}

/// Which of the kernel's two interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// One hierarchy.
    V2,
}

impl Version {
    /// `v1` or `v2`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// The agent's group in every hierarchy in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    version: Option<Version>,
    agent: BTreeMap<Controller, PathBuf>,
    /// v2: where this process went to make room for the groups.
    moved: Option<v2::Moved>,
}

impl Tree {
    pub(super) fn none() -> Self {
        Self { version: None, agent: BTreeMap::new(), moved: None }
    }

    pub(super) fn new(version: Version, agent: BTreeMap<Controller, PathBuf>) -> Self {
        if agent.is_empty() { Self::none() } else { Self { version: Some(version), agent, moved: None } }
    }

    pub(super) fn with_moved(self, moved: Option<v2::Moved>) -> Self {
        Self { moved, ..self }
    }

    pub(super) fn version(&self) -> Option<Version> {
        self.version
    }

    pub(super) fn is_v2(&self) -> bool {
        self.version == Some(Version::V2)
    }

    /// The agent's group of a controller that can be used.
    pub(super) fn agent_dir(&self, controller: Controller) -> Option<PathBuf> {
        self.agent.get(&controller).cloned()
    }

    /// What the agent's group is called; `None` where there is none.
    pub(super) fn group_name(&self) -> Option<String> {
        self.agent.values().next().and_then(|dir| dir.file_name()?.to_str()).map(str::to_owned)
    }

    /// Whether both are the same directories.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        self.agent == other.agent
    }

    /// The same directories, beside these, with `suffix` behind their name.
    pub(super) fn beside(&self, suffix: &str) -> Self {
        let renamed = |dir: &Path| {
            let mut name = dir.file_name().unwrap_or_default().to_owned();
            name.push(suffix);
            dir.with_file_name(name)
        };
        Self { version: self.version, agent: self.agent.iter().map(|(c, dir)| (*c, renamed(dir))).collect(), moved: None }
    }

    /// Makes the directories of this tree, in a place where the agent has made others.
    pub(super) fn make(&self) -> Result<(), Error> {
        for dir in self.agent.values() {
            files::make_dir(dir)?;
        }
        match self.agent_dir(Controller::Core) {
            Some(dir) => v2::hand_on_all(&dir, self.agent.keys().copied()),
            None => Ok(()),
        }
    }

    /// An executor's group of a controller.
    pub(super) fn executor_dir(&self, controller: Controller, id: &ExecutorId) -> Option<PathBuf> {
        self.agent.get(&controller).map(|dir| dir.join(id.as_str()))
    }

    /// An executor's groups, each directory once.
    pub(super) fn executor_dirs(&self, id: &ExecutorId) -> BTreeSet<PathBuf> {
        self.agent.values().map(|dir| dir.join(id.as_str())).collect()
    }

    /// Where a slot's groups lie: of the controllers that know threads.
    pub(super) fn slot_dirs(&self, id: &ExecutorId, slot: u32) -> BTreeSet<PathBuf> {
        [Controller::Cpu, Controller::CpuAcct, Controller::Core]
            .into_iter()
            .filter_map(|c| self.executor_dir(c, id))
            .map(|dir| slot_dir(&dir, slot))
            .collect()
    }

    /// Executors that have a group in any hierarchy.
    pub(super) fn executors(&self) -> Result<Vec<ExecutorId>, Error> {
        let mut ids = BTreeSet::new();
        for dir in self.agent.values() {
            ids.extend(files::children(dir)?.into_iter().filter_map(|(name, _)| ExecutorId::new(name).ok()));
        }
        Ok(ids.into_iter().collect())
    }

    /// Its directories as text, for [`Self::read`].
    pub(super) fn write(&self) -> String {
        let version = self.version.map_or("", Version::name);
        self.agent.iter().map(|(c, dir)| format!("{version} {} {}\n", c.name(), dir.display())).collect()
    }

    /// What [`Self::write`] wrote, but for directories that are not named `group`: nothing else is ours to remove.
    pub(super) fn read(text: &str, group: &str) -> Self {
        let mut version = None;
        let mut agent = BTreeMap::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, ' ');
            let (Some(v), Some(name), Some(dir)) = (parts.next(), parts.next(), parts.next().map(Path::new)) else { continue };
            let Some(v) = [Version::V1, Version::V2].into_iter().find(|known| known.name() == v) else { continue };
            let Some(controller) = Controller::ALL.into_iter().find(|c| c.name() == name) else { continue };
            if dir.is_absolute() && dir.file_name().is_some_and(|n| n == group) {
                version = Some(v);
                agent.insert(controller, dir.to_owned());
            }
        }
        Self { version, agent, moved: None }
    }

    /// Its directories that `other` does not have.
    pub(super) fn without(mut self, other: &Self) -> Self {
        self.agent.retain(|_, dir| !other.agent.values().any(|there| there == dir));
        self
    }

    pub(super) fn remove(&self) -> Result<(), Error> {
        self.agent.values().try_for_each(|dir| files::remove_dir(dir))?;
        self.moved.as_ref().map_or(Ok(()), v2::Moved::back)
    }

    /// Takes back what was made on a way that leads nowhere: what fails here is not the error to report.
    pub(super) fn remove_quietly(&self) {
        let _ = self.remove();
    }
}

pub(super) fn slot_dir(executor: &Path, slot: u32) -> PathBuf {
    executor.join(format!("slot-{slot}"))
}

/// Name of an agent's group.
pub(super) fn agent_group(agent: &str) -> String {
    format!("smalti-{agent}")
}
