//! Kernel limits: the agent's control groups, for executors and their slots.
//!
//! Layout, in every hierarchy used: `<where the agent may write>/smalti-<agent id>/<executor id>/slot-<n>`. The agent's group
//! bounds all executors together, an executor's group bounds its memory and threads, a slot's group bounds the cpu time of the
//! one thread in it. Only the agent writes these files. Groups are made and removed, and threads moved, when executors start and
//! end; a launch at most changes a slot's quota, and only if it differs. Deliberately absent: deciding who gets how much.

pub mod cpu;
mod detect;
mod files;
mod group;
pub mod lend;
pub mod memory;
mod pids;
mod spare;
mod tree;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

pub use cpu::CpuStat;
pub use detect::own_groups;
pub use group::ExecutorGroup;
pub use tree::{Controller, Version};

use smalti_types::{ExecutorId, MilliCpus};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tree::Tree;

/// How much the operator insists on kernel limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Refuse to start unless cpu, memory and threads can be limited.
    #[default]
    Required,
    /// Use what there is and say what is missing.
    Auto,
    /// Make no control groups.
    None,
}

/// One layer of isolation and whether it is on: reported per agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// `cgroup_cpu`, `cgroup_memory`, `cgroup_pids`.
    pub name: String,
    /// Whether the kernel enforces it.
    pub on: bool,
    /// How (`v1`, `v2`), or why not.
    pub detail: String,
}

impl Layer {
    /// The value for the agent's isolation map: `on (v2)` or `off: why`.
    #[must_use]
    pub fn state(&self) -> String {
        if self.on { format!("on ({})", self.detail) } else { format!("off: {}", self.detail) }
    }
}

/// Why a limit could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the control group file system.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A controller refused.
    #[error("{operation} in {}: {source}", path.display())]
    Controller {
        /// What was tried.
        operation: &'static str,
        /// In which group.
        path: PathBuf,
        /// What the kernel said.
        source: cgroups_rs::error::Error,
    },
    /// The kernel took the value and keeps another.
    #[error("{}: wrote {wanted}, the kernel has {got}", path.display())]
    NotInForce {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What is in force.
        got: String,
    },
    /// A file says what nobody expects.
    #[error("{} is not understood: {text:?}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What it says, shortened.
        text: String,
    },
    /// [`Mode::Required`] and something is missing.
    #[error("the kernel's limits cannot be used here: {missing}. {ADVICE}")]
    Required {
        /// What, and why.
        missing: String,
    },
    /// Not the id of a process or thread.
    #[error("{id} is not the id of a process or thread of executor {executor}")]
    BadId {
        /// The executor.
        executor: ExecutorId,
        /// The id.
        id: i32,
    },
    /// A slot that was not made.
    #[error("executor {executor} has no slot {slot}")]
    NoSlot {
        /// The executor.
        executor: ExecutorId,
        /// The slot.
        slot: u32,
    },
}

/// What is added to the name of the agent's group for its own work.
const WORK_SUFFIX: &str = "-work";

/// How long processes of executors that are over may still be dying when the agent ends.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

const ADVICE: &str = "Run the agent as root, or as a systemd service with Delegate=yes, or in a container that may write its control groups; \
                      --isolation auto starts it without these limits";

/// The control groups of one agent.
#[derive(Debug, Clone)]
pub struct Cgroups {
    shared: Arc<Shared>,
}

/// What all groups of the agent have in common.
#[derive(Debug)]
struct Shared {
    tree: Tree,
    /// Cpu time of all executors together, in microseconds per period, once set.
    total_us: Mutex<Option<u64>>,
    /// Whether slots have weights instead of quotas.
    lend: AtomicBool,
    /// Groups of executors that are over.
    spares: spare::Spares,
}

impl Shared {
    fn new(tree: Tree) -> Self {
        Self { tree, total_us: Mutex::default(), lend: AtomicBool::default(), spares: spare::Spares::default() }
    }

    fn tree(&self) -> &Tree {
        &self.tree
    }

    fn lends(&self) -> bool {
        self.lend.load(Ordering::Relaxed)
    }

    fn total_us(&self) -> Option<u64> {
        *self.total_us.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Cgroups {
    /// Finds out what may be used, makes the agent's group, and says layer by layer what is on.
    ///
    /// # Errors
    /// [`Error::Required`] with [`Mode::Required`] when a layer is missing.
    pub fn open(mode: Mode, agent: &str) -> Result<(Self, Vec<Layer>), Error> {
        let (tree, missing) = match mode {
            Mode::None => (Tree::none(), vec![(Controller::Cpu, "turned off by --isolation none".to_owned())]),
            Mode::Required | Mode::Auto => detect::open(agent),
        };
        let layers = layers(&tree, &missing);
        if mode == Mode::Required {
            let off: Vec<String> = layers.iter().filter(|l| !l.on).map(|l| format!("{} ({})", l.name, l.detail)).collect();
            if !off.is_empty() {
                tree.remove_quietly();
                return Err(Error::Required { missing: off.join("; ") });
            }
        }
        Ok((Self { shared: Arc::new(Shared::new(tree)) }, layers))
    }

    /// No limits at all.
    #[must_use]
    pub fn none() -> Self {
        Self { shared: Arc::new(Shared::new(Tree::none())) }
    }

    /// Which interface is used; `None` when there are no groups.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.shared.tree.version()
    }

    /// Bounds the cpu time of all executors together: what the agent advertises.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_total_cpus(&self, cpus: MilliCpus) -> Result<(), Error> {
        let quota = cpu::quota_us(cpus);
        if let Some(dir) = self.shared.tree.agent_dir(Controller::Cpu) {
            cpu::set_quota(&dir, self.shared.tree.is_v2(), quota)?;
            // Against the agent's own threads and its work group, which get their processors by weight.
            cpu::set_weight(&dir, self.shared.tree.is_v2(), cpus)?;
        }
        *self.shared.total_us.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(quota);
        Ok(())
    }

    /// From now on slots may use what others do not: see [`lend`]. To be said before the first executor.
    ///
    /// # Errors
    /// Where there are no groups for cpu time, or not all of the node's processors are for tasks.
    pub fn lend_cpus(&self, total: MilliCpus, cores: usize) -> Result<(), lend::Error> {
        lend::check(total, cores)?;
        if self.shared.tree.agent_dir(Controller::Cpu).is_none() {
            return Err(lend::Error::NoGroups);
        }
        self.shared.lend.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether cpu time is lent.
    #[must_use]
    pub fn lends(&self) -> bool {
        self.shared.lends()
    }

    /// Groups for the agent's own work beside those of the executors: `smalti-<agent id>-work`. What runs in them is in no
    /// executor's account, has [`cpu::work_weight`] against everything else, and no more processors than are there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn beside(&self, cpus: MilliCpus) -> Result<Self, Error> {
        let tree = self.shared.tree.beside(WORK_SUFFIX);
        tree.make()?;
        if let Some(dir) = tree.agent_dir(Controller::Cpu) {
            cpu::set_weight(&dir, tree.is_v2(), cpu::work_weight(cpus))?;
        }
        Ok(Self { shared: Arc::new(Shared::new(tree)) })
    }

    /// The same groups as [`Self::beside`] without making them, to remove what an earlier life left.
    #[must_use]
    pub fn was_beside(&self) -> Self {
        Self { shared: Arc::new(Shared::new(self.shared.tree.beside(WORK_SUFFIX))) }
    }

    /// Moves the calling thread into these groups, where the kernel lets threads of one process be in several: v1, cpu time only.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_own_thread(&self) -> Result<(), Error> {
        match (self.version(), self.shared.tree.agent_dir(Controller::Cpu)) {
            (Some(Version::V1), Some(dir)) => files::write(&dir.join("tasks"), &nix::unistd::gettid().to_string()),
            _ => Ok(()),
        }
    }

    /// Moves threads that [`Self::add_own_thread`] brought here back up, so that the groups can be removed while they live.
    fn send_threads_up(&self) -> Result<(), Error> {
        let Some(dir) = self.shared.tree.agent_dir(Controller::Cpu).filter(|_| !self.shared.tree.is_v2()) else { return Ok(()) };
        for tid in files::ids(&dir.join("tasks"))? {
            // One that is gone needs no moving.
            let _ = files::write(&dir.with_file_name("tasks"), &tid.to_string());
        }
        Ok(())
    }

    /// Makes an executor's group, without slots. If it is there already it is used as it is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn executor(&self, id: &ExecutorId) -> Result<ExecutorGroup, Error> {
        ExecutorGroup::make(self.shared.clone(), id.clone())
    }

    /// The same for an executor of one slot, with its slot. They may be another's that is over, with nothing left of that.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn executor_of_one_slot(&self, id: &ExecutorId) -> Result<ExecutorGroup, Error> {
        if spare::reuse(&self.shared, id)? {
            return Ok(ExecutorGroup::reused(self.shared.clone(), id.clone()));
        }
        let group = self.executor(id)?;
        match group.make_slots(1) {
            Ok(()) => Ok(group),
            Err(e) => {
                let _ = group.try_remove();
                Err(e)
            }
        }
    }

    /// The groups of an executor of an earlier life of this agent, with so many slots, as they are: nothing is made. `places` is what
    /// [`Self::places`] gave then; that may be elsewhere than these groups.
    #[must_use]
    pub fn attach(&self, id: &ExecutorId, slots: u32, places: &str) -> ExecutorGroup {
        let group = self.shared.tree.group_name();
        let shared = match group.map(|name| Tree::read(places, &name)) {
            Some(tree) if !tree.is_same_place(&self.shared.tree) && tree.version().is_some() => Arc::new(Shared::new(tree)),
            _ => self.shared.clone(),
        };
        ExecutorGroup::attached(shared, id.clone(), slots)
    }

    /// Removes the groups of executors of an earlier life of this agent, with whatever still runs in them, but for those in
    /// `keep`. Blocks for up to `within`. Gives the number of groups removed.
    ///
    /// # Errors
    /// When something could not be removed in time.
    pub fn cleanup_stale(&self, keep: &[ExecutorId], within: Duration) -> Result<usize, Error> {
        let deadline = Instant::now() + within;
        let stale: Vec<ExecutorId> = self.shared.tree.executors()?.into_iter().filter(|id| !keep.contains(id)).collect();
        for id in &stale {
            ExecutorGroup::existing(self.shared.clone(), id.clone()).remove(deadline.saturating_duration_since(Instant::now()))?;
        }
        Ok(stale.len())
    }

    /// Executors that have groups here.
    ///
    /// # Errors
    /// When the directories cannot be read.
    pub fn executors(&self) -> Result<Vec<ExecutorId>, Error> {
        self.shared.tree.executors()
    }

    /// Where the groups lie, to be kept for [`Self::elsewhere`].
    #[must_use]
    pub fn places(&self) -> String {
        self.shared.tree.write()
    }

    /// The groups of an earlier life of this agent that lie elsewhere than the present ones: whoever starts it decides in which
    /// groups it is, on v1 in each hierarchy apart. `places` is what [`Self::places`] gave then.
    #[must_use]
    pub fn elsewhere(&self, places: &str, agent: &str) -> Self {
        let tree = Tree::read(places, &tree::agent_group(agent)).without(&self.shared.tree);
        Self { shared: Arc::new(Shared::new(tree)) }
    }

    /// Removes the agent's own group, at its end. Executors must be gone.
    ///
    /// # Errors
    /// When it is not empty.
    pub fn close(&self) -> Result<(), Error> {
        for id in self.shared.spares.take_all() {
            ExecutorGroup::existing(self.shared.clone(), id).remove(CLOSE_WITHIN)?;
        }
        self.send_threads_up()?;
        self.shared.tree.remove()
    }
}

/// What the operator is told, in the same order always.
fn layers(tree: &Tree, missing: &[(Controller, String)]) -> Vec<Layer> {
    let version = tree.version().map_or("", Version::name);
    let why = |c: Controller| {
        let found = missing.iter().find(|(m, _)| *m == c).or(missing.first());
        found.map_or_else(|| "no such controller".to_owned(), |(_, why)| why.clone())
    };
    [Controller::Cpu, Controller::Memory, Controller::Pids]
        .into_iter()
        .map(|c| {
            let on = tree.agent_dir(c).is_some();
            Layer { name: format!("cgroup_{}", c.name()), on, detail: if on { version.to_owned() } else { why(c) } }
        })
        .collect()
}
