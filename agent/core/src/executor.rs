//! One executor: whose it is, what is in its slots, which code it has, and how much memory it needs.
//!
//! Owns the bookkeeping of one executor. Deliberately absent: which executors there are (`executors`), processes and cgroups (the
//! shell's).

use crate::event::{ModuleId, Run};
use crate::parameters::ExecutorKind;
use crate::record::ExecutorRecord;
use smalti_types::{Bytes, Digest, DurationMs, FrameworkId, MilliCpus, Time};
use std::collections::BTreeMap;

/// Code kept loaded in one executor; the least recently used that nothing runs is unloaded first.
const MOST_MODULES: usize = 64;
/// Memory of an executor beside its tasks: the process itself, each slot's stacks and resident pages, each module's code.
const BASE: Bytes = Bytes::mib(96);
const PER_SLOT: Bytes = Bytes::mib(6);
const PER_MODULE: Bytes = Bytes::mib(16);
/// Limits move in steps of this, so that they rarely move.
const STEP: Bytes = Bytes::mib(256);
/// A limit is lowered at the earliest this long after it was last raised.
const LOWER_AFTER: DurationMs = DurationMs(10_000);

/// Where an executor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Asked for.
    Starting,
    /// Of an earlier life of the agent, which looks for it; takes nothing.
    Away,
    /// Found again; takes nothing until it has said what it holds.
    Back,
    /// Takes tasks.
    Up,
    /// Told to end; takes nothing. Killed after the deadline.
    Stopping(Option<Time>),
}

/// One thread that runs one instance at a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot {
    pub(crate) run: Option<Run>,
    /// The limit that the kernel has for it; `None`: never set.
    cpus: Option<MilliCpus>,
}

/// Code in an executor.
#[derive(Debug)]
struct Module {
    id: ModuleId,
    loaded: bool,
    /// Runs that wait for it, in order.
    waiting: Vec<Run>,
    /// Runs that use it or wait for it.
    users: u32,
    last_used: u64,
}

/// What names code in an executor: the bundle, and whether it counts fuel.
pub(crate) type Code = (Digest, bool);

/// What to do for a run that needs code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// It is there.
    Loaded(ModuleId),
    /// It is on its way.
    Wait,
    /// Load it, and unload the other first.
    Load(ModuleId, Option<ModuleId>),
}

/// One executor.
#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) kind: ExecutorKind,
    /// Whose tasks it runs; `None`: of the pool, and not used yet.
    pub(crate) framework: Option<FrameworkId>,
    /// A networked one is for this attempt only.
    pub(crate) only: Option<Run>,
    /// Of those that are used once: whether that was.
    pub(crate) used: bool,
    pub(crate) phase: Phase,
    pub(crate) slots: Vec<Slot>,
    modules: BTreeMap<Code, Module>,
    next_module: u32,
    /// Numbers up to this one are of an earlier life of the agent, which nobody knows any more.
    pub(crate) forgotten: u32,
    /// Memory of that code is counted until nothing runs.
    old_modules: usize,
    /// What it said has taken effect up to this number.
    pub(crate) heard: u64,
    /// What the last record says.
    pub(crate) recorded: Option<ExecutorRecord>,
    clock: u64,
    /// Sum of the memory of its tasks.
    pub(crate) tasks_memory: u64,
    limit: Bytes,
    raised: Time,
    pub(crate) idle_since: Time,
    /// Messages that spoke of what it does not hold.
    pub(crate) lies: u32,
    /// Since when they are counted.
    pub(crate) lies_since: Time,
}

impl Executor {
    /// An earlier life of the agent knew it, and it has not said yet what it holds.
    pub(crate) const fn is_coming_back(&self) -> bool {
        matches!(self.phase, Phase::Away | Phase::Back)
    }

    /// One that is being started, with the memory limit that it starts with: enough for its first tasks' `memory`.
    pub(crate) fn new(kind: ExecutorKind, framework: Option<FrameworkId>, slots: u32, memory: u64, now: Time) -> Self {
        let mut executor = Self {
            kind,
            framework,
            only: None,
            used: false,
            phase: Phase::Starting,
            slots: vec![Slot::default(); slots as usize],
            modules: BTreeMap::new(),
            next_module: 0,
            forgotten: 0,
            old_modules: 0,
            heard: 0,
            recorded: None,
            clock: 0,
            tasks_memory: 0,
            limit: Bytes(0),
            raised: now,
            idle_since: now,
            lies: 0,
            lies_since: now,
        };
        executor.limit = executor.limit_for(overhead(slots as usize, 1).saturating_add(memory));
        executor
    }

    /// One of an earlier life of the agent, as its record describes it. Its runs are the caller's to put in.
    pub(crate) fn restore(state: ExecutorRecord, heard: u64, now: Time) -> Self {
        let mut executor = Self::new(state.kind, state.framework.clone(), state.slots, 0, now);
        executor.phase = Phase::Away;
        executor.only = state.only;
        executor.used = state.used;
        executor.next_module = state.modules;
        executor.forgotten = state.modules;
        executor.heard = heard;
        executor.recorded = Some(state);
        executor
    }

    /// A run of an earlier life is in these slots.
    pub(crate) fn put(&mut self, run: Run, slots: &[u32], memory: u64) {
        for slot in slots {
            if let Some(slot) = self.slots.get_mut(*slot as usize) {
                slot.run = Some(run);
            }
        }
        self.tasks_memory = self.tasks_memory.saturating_add(memory);
    }

    /// It has said what code it has: that is nobody's any more. The limit that it should have.
    pub(crate) fn back(&mut self, modules: usize, now: Time) -> Bytes {
        self.old_modules = modules;
        self.idle_since = now;
        self.raised = now;
        self.limit = self.limit_for(self.needed());
        self.limit
    }

    /// Its record; `None` while it is being started.
    pub(crate) fn record(&self) -> Option<ExecutorRecord> {
        (self.phase != Phase::Starting).then(|| ExecutorRecord {
            kind: self.kind,
            framework: self.framework.clone(),
            only: self.only,
            used: self.used,
            slots: u32::try_from(self.slots.len()).unwrap_or(u32::MAX),
            modules: self.next_module,
            stopping: matches!(self.phase, Phase::Stopping(_)) || self.recorded.as_ref().is_some_and(|r| r.stopping),
        })
    }

    /// The number of code that is loaded.
    pub(crate) fn module(&self, code: &Code) -> Option<ModuleId> {
        self.modules.get(code).filter(|m| m.loaded).map(|m| m.id)
    }

    /// Its memory limit.
    pub(crate) const fn limit(&self) -> Bytes {
        self.limit
    }

    /// Whether it is used once, up, and waits for that use.
    pub(crate) fn is_fresh(&self) -> bool {
        self.kind.is_used_once() && self.phase == Phase::Up && !self.used
    }

    pub(crate) fn free_slots(&self) -> u32 {
        let free = self.slots.iter().filter(|s| s.run.is_none()).count();
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.slots.iter().all(|s| s.run.is_none())
    }

    /// Takes the `n` lowest free slots.
    pub(crate) fn reserve(&mut self, run: Run, n: u32) -> Vec<u32> {
        let mut taken = Vec::new();
        for (i, slot) in (0_u32..).zip(&mut self.slots) {
            if taken.len() == n as usize {
                break;
            }
            if slot.run.is_none() {
                slot.run = Some(run);
                taken.push(i);
            }
        }
        taken
    }

    /// Gives slots back.
    pub(crate) fn release(&mut self, slots: &[u32], memory: u64, now: Time) {
        for slot in slots {
            if let Some(slot) = self.slots.get_mut(*slot as usize) {
                slot.run = None;
            }
        }
        self.tasks_memory = self.tasks_memory.saturating_sub(memory);
        self.idle_since = now;
        if self.is_idle() {
            self.old_modules = 0;
        }
    }

    /// The new limit of a slot, if the kernel has another.
    pub(crate) fn set_cpus(&mut self, slot: u32, cpus: MilliCpus) -> bool {
        self.slots.get_mut(slot as usize).is_some_and(|s| s.cpus.replace(cpus) != Some(cpus))
    }

    /// Counts a task's memory in; the new limit, if it must be raised first.
    pub(crate) fn add_memory(&mut self, memory: u64, now: Time) -> Option<Bytes> {
        self.tasks_memory = self.tasks_memory.saturating_add(memory);
        self.raise(now)
    }

    fn raise(&mut self, now: Time) -> Option<Bytes> {
        let needed = self.needed();
        (needed > self.limit.0).then(|| {
            self.limit = self.limit_for(needed);
            self.raised = now;
            self.limit
        })
    }

    /// A lower limit, when it has long been far above the need.
    pub(crate) fn lower(&mut self, now: Time) -> Option<Bytes> {
        let wanted = self.limit_for(self.needed());
        let lower = self.kind == ExecutorKind::Shared
            && self.phase == Phase::Up
            && wanted.0.saturating_mul(2) <= self.limit.0
            && now >= self.raised.after(LOWER_AFTER);
        lower.then(|| {
            self.limit = wanted;
            wanted
        })
    }

    /// The limit for a need. Shared: an eighth more, in whole steps. Used once: exactly that, since it never changes again.
    fn limit_for(&self, needed: u64) -> Bytes {
        if self.kind.is_used_once() {
            return Bytes(needed);
        }
        let wanted = needed.saturating_add(needed / 8);
        Bytes(wanted.div_ceil(STEP.0).saturating_mul(STEP.0))
    }

    fn needed(&self) -> u64 {
        // One that is used once has one module sooner or later: counting it from the start makes its limit known from the start.
        let modules = (self.modules.len() + self.old_modules).max(usize::from(self.kind.is_used_once()));
        overhead(self.slots.len(), modules).saturating_add(self.tasks_memory)
    }

    /// What must happen before `run` can start with `code`. Counts it as a user.
    pub(crate) fn need(&mut self, code: Code, run: Run) -> Need {
        self.clock += 1;
        if let Some(module) = self.modules.get_mut(&code) {
            module.users += 1;
            module.last_used = self.clock;
            if module.loaded {
                return Need::Loaded(module.id);
            }
            module.waiting.push(run);
            return Need::Wait;
        }
        let mut unload = None;
        if self.modules.len() >= MOST_MODULES {
            let unused = self.modules.iter().filter(|(_, m)| m.users == 0 && m.loaded).min_by_key(|(_, m)| m.last_used);
            if let Some(code) = unused.map(|(code, _)| *code) {
                unload = self.modules.remove(&code).map(|m| m.id);
            }
        }
        self.next_module += 1;
        let id = ModuleId(self.next_module);
        self.modules.insert(code, Module { id, loaded: false, waiting: vec![run], users: 1, last_used: self.clock });
        Need::Load(id, unload)
    }

    /// The executor answered: the runs that waited, and the number to start them with. `None`: nobody asked for it.
    pub(crate) fn loaded(&mut self, id: ModuleId, ok: bool) -> Option<Vec<Run>> {
        let code = self.modules.iter().find(|(_, m)| m.id == id && !m.loaded).map(|(code, _)| *code)?;
        if ok {
            let module = self.modules.get_mut(&code)?;
            module.loaded = true;
            Some(std::mem::take(&mut module.waiting))
        } else {
            self.modules.remove(&code).map(|m| m.waiting)
        }
    }

    /// A run does not use its code any more.
    pub(crate) fn done_with(&mut self, code: Code, run: Run) {
        if let Some(module) = self.modules.get_mut(&code) {
            module.users = module.users.saturating_sub(1);
            module.waiting.retain(|r| *r != run);
        }
    }
}

/// Memory that an executor needs beside its tasks.
fn overhead(slots: usize, modules: usize) -> u64 {
    BASE.0.saturating_add(PER_SLOT.0.saturating_mul(slots as u64)).saturating_add(PER_MODULE.0.saturating_mul(modules as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Executor {
        let mut executor = Executor::new(ExecutorKind::Shared, FrameworkId::new("F").ok(), 4, 0, Time(0));
        executor.phase = Phase::Up;
        executor
    }

    #[test]
    fn code_is_loaded_once_and_the_oldest_unused_makes_room() {
        let mut e = shared();
        let code = |n: u8| (Digest::of(&[n]), false);
        assert_eq!(e.need(code(0), Run(1)), Need::Load(ModuleId(1), None));
        assert_eq!(e.need(code(0), Run(2)), Need::Wait);
        assert_eq!(e.loaded(ModuleId(1), true), Some(vec![Run(1), Run(2)]));
        assert_eq!(e.loaded(ModuleId(1), true), None, "a repeat");
        assert_eq!(e.need(code(0), Run(3)), Need::Loaded(ModuleId(1)));
        for n in 1..64 {
            let run = Run(100 + u64::from(n));
            assert!(matches!(e.need(code(n), run), Need::Load(_, None)));
            e.loaded(ModuleId(u32::from(n) + 1), true);
            e.done_with(code(n), run);
        }
        assert_eq!(e.need(code(200), Run(4)), Need::Load(ModuleId(65), Some(ModuleId(2))), "the first is still in use");
    }

    #[test]
    fn memory_is_raised_before_it_is_needed_and_lowered_late() {
        let mut e = shared();
        let raised = e.add_memory(Bytes::gib(4).0, Time(0)).unwrap();
        assert!(raised.0 >= Bytes::gib(4).0 && raised.0.is_multiple_of(STEP.0));
        assert_eq!(e.add_memory(1, Time(0)), None);
        e.release(&[], Bytes::gib(4).0, Time(1));
        assert_eq!(e.lower(Time(9_999_999)), None);
        assert!(e.lower(Time(10_000_000)).unwrap() < raised);
        assert_eq!(e.lower(Time(30_000_000)), None);
    }

    #[test]
    fn an_executor_that_is_used_once_is_limited_to_its_task_and_a_fixed_overhead() {
        let mut e = Executor::new(ExecutorKind::Pooled, None, 1, 0, Time(0));
        assert!(!e.is_fresh(), "not up yet");
        e.phase = Phase::Up;
        assert!(e.is_fresh());
        let before = e.limit();
        assert_eq!(e.add_memory(Bytes::mib(64).0, Time(0)), Some(Bytes(before.0 + Bytes::mib(64).0)));
        e.need((Digest::of(b"x"), false), Run(1));
        assert_eq!(e.add_memory(0, Time(0)), None, "one module is part of the overhead");
        e.release(&[0], Bytes::mib(64).0, Time(0));
        assert_eq!(e.lower(Time(1_000_000_000)), None);
    }
}
