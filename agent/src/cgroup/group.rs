//! One executor's groups and those of its slots.
//!
//! A handle: clones name the same groups. Where a controller cannot be used, what would need it does nothing; the agent has said
//! so at its start.

use super::cpu::{self, CpuStat, Quotas, Write};
use super::files::{self, controller};
use super::lend::Weights;
use super::tree::{Controller, slot_dir};
use super::{Error, Shared, Version, memory, pids, v2};
use cgroups_rs::cpu::CpuController;
use cgroups_rs::{CgroupPid, Controller as _};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use smalti_types::{Bytes, ExecutorId, MilliCpus};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest pause between two attempts to remove a group whose processes are still dying.
const MAX_PAUSE: Duration = Duration::from_millis(20);

/// The groups of one executor.
#[derive(Debug, Clone)]
pub struct ExecutorGroup {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    id: ExecutorId,
    quotas: Mutex<Quotas>,
    weights: Mutex<Weights>,
    /// Made by this life of the agent, where it makes all others.
    ours: bool,
}

impl ExecutorGroup {
    pub(super) fn make(shared: Arc<Shared>, id: ExecutorId) -> Result<Self, Error> {
        let dirs = shared.tree().executor_dirs(&id);
        let group = Self::of(shared, id, true);
        for dir in &dirs {
            if let Err(e) = files::make_dir(dir) {
                let _ = group.try_remove();
                return Err(e);
            }
        }
        Ok(group)
    }

    pub(super) fn existing(shared: Arc<Shared>, id: ExecutorId) -> Self {
        Self::of(shared, id, false)
    }

    fn of(shared: Arc<Shared>, id: ExecutorId, ours: bool) -> Self {
        Self { inner: Arc::new(Inner { shared, id, quotas: Mutex::default(), weights: Mutex::default(), ours }) }
    }

    /// One with slots that was made by an earlier life of the agent, and the quotas that are in force there.
    pub(super) fn attached(shared: Arc<Shared>, id: ExecutorId, slots: u32) -> Self {
        let group = Self::existing(shared, id);
        let (cpu, v2) = (group.dir(Controller::Cpu), group.v2());
        let of_slot = |n| cpu.as_deref().and_then(|dir| cpu::quota_in_force(&slot_dir(dir, n), v2));
        *group.quotas() = Quotas::found(cpu.as_deref().and_then(|dir| cpu::quota_in_force(dir, v2)), (0..slots).map(of_slot));
        group.weights().set_slots(slots as usize);
        group
    }

    /// One with a slot that was another executor's.
    pub(super) fn reused(shared: Arc<Shared>, id: ExecutorId) -> Self {
        let group = Self::of(shared, id, true);
        group.quotas().set_slots(1);
        group.weights().set_slots(1);
        group
    }

    /// Lets an executor of one slot have the groups, instead of removing them. All processes of this one are dead. False: they are to be
    /// removed.
    #[must_use]
    pub fn hand_on(&self) -> bool {
        let shared = &self.inner.shared;
        let fits = shared.tree().version() == Some(Version::V1) && !shared.lends() && self.quotas().slots() == 1;
        fits && self.inner.ours && shared.spares.keep(&self.inner.id)
    }

    /// The executor.
    #[must_use]
    pub fn id(&self) -> &ExecutorId {
        &self.inner.id
    }

    /// Whether processes in it can be listed and killed as a group.
    #[must_use]
    pub fn exists(&self) -> bool {
        !self.dirs().is_empty()
    }

    /// Moves a process with all its threads into the group; what it starts stays in it.
    ///
    /// # Errors
    /// When the kernel refuses, a process that is gone included.
    pub fn add_process(&self, pid: i32) -> Result<(), Error> {
        self.move_process(pid, self.dirs())
    }

    /// The same for a process that is all of an executor of one slot: what its threads do, they do in the slot.
    ///
    /// # Errors
    /// As [`Self::add_process`].
    pub fn add_process_to_slot(&self, pid: i32) -> Result<(), Error> {
        self.check_slot(0)?;
        let slots = self.inner.shared.tree().slot_dirs(&self.inner.id, 0);
        // On v2 a slot is entered from its executor's group only.
        let above = self.dirs().into_iter().filter(|dir| self.v2() || !slots.contains(&slot_dir(dir, 0)));
        self.move_process(pid, above.chain(slots.iter().cloned()))
    }

    fn move_process(&self, pid: i32, into: impl IntoIterator<Item = PathBuf>) -> Result<(), Error> {
        let pid = self.checked(pid)?;
        for dir in into {
            let control = CpuController::new(dir.clone(), self.v2());
            control.add_task_by_tgid(&pid).map_err(controller("moving a process", &dir))?;
        }
        Ok(())
    }

    /// Makes the groups of slots 0 to `n` - 1; those that are there stay as they are.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make_slots(&self, n: u32) -> Result<(), Error> {
        let tree = self.inner.shared.tree();
        for slot in 0..n {
            for dir in tree.slot_dirs(&self.inner.id, slot) {
                if self.v2() {
                    let has = |c| tree.agent_dir(c).is_some();
                    let executor = dir.parent().unwrap_or(&dir);
                    v2::make_slot(executor, &dir, has(Controller::Cpu), has(Controller::Pids))?;
                } else {
                    files::make_dir(&dir)?;
                }
            }
        }
        self.quotas().set_slots(n as usize);
        self.weights().set_slots(n as usize);
        Ok(())
    }

    /// Moves one thread into a slot. `tid` is the id that the agent sees, and its process must be in this group already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn place_thread(&self, slot: u32, tid: i32) -> Result<(), Error> {
        self.check_slot(slot)?;
        let tid = self.checked(tid)?;
        for dir in self.inner.shared.tree().slot_dirs(&self.inner.id, slot) {
            let control = CpuController::new(dir.clone(), self.v2());
            control.add_task(&tid).map_err(controller("moving a thread", &dir))?;
        }
        Ok(())
    }

    /// Sets how much cpu time a slot may use. Writes only what changes: nothing, or a few microseconds.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_slot_cpus(&self, slot: u32, cpus: MilliCpus) -> Result<(), Error> {
        self.check_slot(slot)?;
        let Some(dir) = self.dir(Controller::Cpu) else { return Ok(()) };
        if self.inner.shared.lends() {
            cpu::set_weight(&slot_dir(&dir, slot), self.v2(), cpus)?;
            let mut weights = self.weights();
            let change = weights.set(slot, cpus);
            return self.weigh(&mut weights, change);
        }
        let mut quotas = self.quotas();
        for write in quotas.plan(slot, cpus, self.inner.shared.total_us()) {
            let result = match write {
                Write::Executor(us) => cpu::set_quota(&dir, self.v2(), us),
                Write::Slot(n, us) => cpu::set_quota(&slot_dir(&dir, n), self.v2(), us),
            };
            quotas.record(write, result.is_ok());
            result?;
        }
        Ok(())
    }

    /// Says which slots begin or end to run something: only they count where cpu time is lent. Does nothing where it is not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_busy(&self, slots: &[u32], busy: bool) -> Result<(), Error> {
        if !self.inner.shared.lends() {
            return Ok(());
        }
        let mut weights = self.weights();
        let change = weights.set_busy(slots, busy);
        self.weigh(&mut weights, change)
    }

    fn weigh(&self, weights: &mut Weights, change: Option<MilliCpus>) -> Result<(), Error> {
        let (Some(weight), Some(dir)) = (change, self.dir(Controller::Cpu)) else { return Ok(()) };
        cpu::set_weight(&dir, self.v2(), weight)?;
        weights.record(weight);
        Ok(())
    }

    /// Bounds the executor's memory, without swap; never below what it uses plus [`memory::MARGIN`]. Gives the limit in force,
    /// `None` where memory cannot be limited.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_memory(&self, limit: Bytes) -> Result<Option<Bytes>, Error> {
        self.dir(Controller::Memory).map(|dir| memory::set_limit(&dir, self.v2(), limit)).transpose()
    }

    /// Bounds the number of threads, supervisor included.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_max_threads(&self, threads: u32) -> Result<(), Error> {
        self.dir(Controller::Pids).map_or(Ok(()), |dir| pids::set_limit(&dir, self.v2(), threads))
    }

    /// What a slot used, `None` where it is not counted. Where groups were another executor's before, throttling is counted from then on.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn slot_cpu_stat(&self, slot: u32) -> Result<Option<CpuStat>, Error> {
        self.check_slot(slot)?;
        let (Some(version), Some(dir)) = (self.inner.shared.tree().version(), self.dir(Controller::Cpu)) else { return Ok(None) };
        let accounting = self.dir(Controller::CpuAcct).map(|d| slot_dir(&d, slot));
        cpu::stat(version, &slot_dir(&dir, slot), accounting.as_deref()).map(Some)
    }

    /// Cpu time that everything in the group used, in microseconds; `None` where it is not counted.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn cpu_usage_us(&self) -> Result<Option<u64>, Error> {
        let (Some(version), Some(dir)) = (self.inner.shared.tree().version(), self.dir(Controller::Cpu)) else { return Ok(None) };
        let accounting = self.dir(Controller::CpuAcct);
        let counted = version == Version::V2 || accounting.is_some();
        cpu::stat(version, &dir, accounting.as_deref()).map(|stat| counted.then_some(stat.usage_us))
    }

    /// Memory in use, `None` where it is not counted.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn memory_usage(&self) -> Result<Option<Bytes>, Error> {
        self.dir(Controller::Memory).map(|dir| memory::usage(&dir, self.v2())).transpose()
    }

    /// The most memory that was in use, `None` where it is not counted.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn memory_peak(&self) -> Result<Option<Bytes>, Error> {
        self.dir(Controller::Memory).map_or(Ok(None), |dir| memory::peak(&dir, self.v2()))
    }

    /// How many of its processes the kernel killed at the memory limit.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        self.dir(Controller::Memory).map_or(Ok(0), |dir| memory::oom_kills(&dir, self.v2()))
    }

    /// Whether pages of this executor can never be swapped out.
    #[must_use]
    pub fn swap_is_off(&self) -> bool {
        self.dir(Controller::Memory).is_some_and(|dir| memory::swap_is_off(&dir, self.v2()))
    }

    /// Processes in the group, as the agent sees them. Empty where there are no groups.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>, Error> {
        // v1 lists a process in `slot-n` too, when one of its threads is there: the executor's own list has the leader.
        let mut all = Vec::new();
        for dir in self.dirs() {
            all.extend(files::ids(&dir.join("cgroup.procs"))?);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Whether the kernel can kill all of the group at once.
    #[must_use]
    pub fn ends_whole(&self) -> bool {
        self.dir(Controller::Core).is_some_and(|d| d.join("cgroup.kill").exists())
    }

    /// Which limits the group has: name of the layer, and whether it is there.
    #[must_use]
    pub fn limits(&self) -> [(&'static str, bool); 3] {
        let has = |controller| self.dir(controller).is_some();
        [("cgroup_cpu", has(Controller::Cpu)), ("cgroup_memory", has(Controller::Memory)), ("cgroup_pids", has(Controller::Pids))]
    }

    /// Kills everything in the group.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> Result<(), Error> {
        if let Some(file) = self.dir(Controller::Core).map(|d| d.join("cgroup.kill")).filter(|f| f.exists()) {
            return files::write(&file, "1");
        }
        for pid in self.processes()? {
            let Some(fd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { continue };
            // Only what is still listed now is surely the process that the descriptor names.
            if self.processes()?.contains(&pid) {
                let _ = pidfd_send_signal(&fd, Signal::KILL);
            }
        }
        Ok(())
    }

    /// Removes the groups if nothing is in them any more; false while something is.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub fn try_remove(&self) -> Result<bool, Error> {
        let busy = |e: Error| match e {
            Error::File { source, .. } if source.raw_os_error() == Some(nix::libc::EBUSY) => Ok(false),
            e => Err(e),
        };
        for slot in 0..self.quotas().slots() {
            let slot = u32::try_from(slot).unwrap_or(u32::MAX);
            for dir in self.inner.shared.tree().slot_dirs(&self.inner.id, slot) {
                if let Err(e) = files::remove_dir(&dir) {
                    return busy(e);
                }
            }
        }
        for dir in self.dirs() {
            // Unknown ones of an earlier life may be in it.
            if files::remove_dir(&dir).is_ok() {
                continue;
            }
            for (_, child) in files::children(&dir)? {
                if let Err(e) = files::remove_dir(&child) {
                    return busy(e);
                }
            }
            if let Err(e) = files::remove_dir(&dir) {
                return busy(e);
            }
        }
        Ok(true)
    }

    /// Kills what is in the groups and removes them. Blocks for up to `within`: for tests and the agent's start.
    ///
    /// # Errors
    /// When something is still there at the end.
    pub fn remove(&self, within: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + within;
        let mut pause = Duration::from_millis(1);
        loop {
            // Mostly nothing is left in it.
            if self.try_remove()? {
                return Ok(());
            }
            self.kill()?;
            if Instant::now() >= deadline {
                let path = self.dirs().into_iter().next().unwrap_or_default();
                return Err(files::error("removing", &path)(std::io::Error::other("processes are still in it")));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Whether a process is in this group: in that of one controller, as all of them are entered together. True where there are no
    /// groups.
    #[must_use]
    pub fn contains(&self, pid: i32) -> bool {
        self.contains_all(&[pid])
    }

    /// The same for several processes.
    #[must_use]
    pub fn contains_all(&self, pids: &[i32]) -> bool {
        let Some(dir) = self.dir(Controller::Pids).or_else(|| self.dirs().into_iter().next()) else { return true };
        files::ids(&dir.join("cgroup.procs")).is_ok_and(|all| pids.iter().all(|pid| all.contains(pid)))
    }

    fn dir(&self, controller: Controller) -> Option<PathBuf> {
        self.inner.shared.tree().executor_dir(controller, &self.inner.id)
    }

    fn dirs(&self) -> std::collections::BTreeSet<PathBuf> {
        self.inner.shared.tree().executor_dirs(&self.inner.id)
    }

    fn v2(&self) -> bool {
        self.inner.shared.tree().version() == Some(Version::V2)
    }

    fn weights(&self) -> MutexGuard<'_, Weights> {
        self.inner.weights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn quotas(&self) -> MutexGuard<'_, Quotas> {
        self.inner.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Zero would move the agent itself.
    fn checked(&self, id: i32) -> Result<CgroupPid, Error> {
        match u64::try_from(id) {
            Ok(id) if id > 0 => Ok(CgroupPid::from(id)),
            _ => Err(Error::BadId { executor: self.inner.id.clone(), id }),
        }
    }

    fn check_slot(&self, slot: u32) -> Result<(), Error> {
        let there = (slot as usize) < self.quotas().slots();
        if there { Ok(()) } else { Err(Error::NoSlot { executor: self.inner.id.clone(), slot }) }
    }
}
