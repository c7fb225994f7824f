//! Which executors exist, and which of them can take what waits.
//!
//! Owns the executors and their names. Deliberately absent: what is in one (`executor`), processes and cgroups (the shell's), and
//! what runs in the slots.

use crate::event::Run;
use crate::executor::{Executor, Phase};
use crate::parameters::ExecutorKind;
use smalti_types::{DurationMs, ExecutorId, FrameworkId, Time};
use std::collections::{BTreeMap, BTreeSet};

/// An executor that was told to end has this long.
const STOP_WITHIN: DurationMs = DurationMs(10_000);

/// Executors of one framework that start at once.
const MOST_STARTING: usize = 3;

/// All executors.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(crate) executors: BTreeMap<ExecutorId, Executor>,
    /// The number of the last one that was asked for.
    pub(crate) started: u64,
    /// Those of which there may be something to record.
    pub(crate) touched: BTreeSet<ExecutorId>,
}

impl Pool {
    /// Adds one that is to be started.
    pub(crate) fn add(&mut self, executor: Executor) -> Option<ExecutorId> {
        self.started += 1;
        let id = ExecutorId::new(format!("E{}", self.started)).ok()?;
        self.executors.insert(id.clone(), executor);
        Some(id)
    }

    /// How many there are of the kinds that are used once (`true`) or not.
    pub(crate) fn count(&self, used_once: bool) -> usize {
        self.executors.values().filter(|e| e.kind.is_used_once() == used_once).count()
    }

    /// Slots of all shared executors, and of those of `framework`.
    pub(crate) fn slots(&self, framework: &FrameworkId) -> (u32, u32) {
        let shared = self.executors.values().filter(|e| e.kind == ExecutorKind::Shared);
        shared.fold((0, 0), |(all, own), e| {
            let slots = u32::try_from(e.slots.len()).unwrap_or(u32::MAX);
            let of_it = if e.framework.as_ref() == Some(framework) { slots } else { 0 };
            (all.saturating_add(slots), own.saturating_add(of_it))
        })
    }

    /// One that waits for its only use: of the pool, or for this attempt. The one that started first.
    pub(crate) fn fresh(&self, kind: ExecutorKind, only: Option<Run>) -> Option<ExecutorId> {
        let fits = self.executors.iter().filter(|(_, e)| e.kind == kind && e.only == only && e.is_fresh());
        fits.min_by_key(|(_, e)| e.idle_since).map(|(id, _)| id.clone())
    }

    /// How many of a kind wait for their only use.
    pub(crate) fn count_fresh(&self, kind: ExecutorKind) -> usize {
        self.executors.values().filter(|e| e.kind == kind && e.is_fresh()).count()
    }

    /// How many of a kind (for one attempt) wait for their only use or are being started.
    pub(crate) fn coming(&self, kind: ExecutorKind, only: Option<Run>) -> usize {
        let coming = |e: &&Executor| e.kind == kind && e.only == only && (e.phase == Phase::Starting || e.is_fresh());
        self.executors.values().filter(coming).count()
    }

    /// How many of those that are used once are being started.
    pub(crate) fn starting_once(&self) -> usize {
        self.executors.values().filter(|e| e.kind.is_used_once() && e.phase == Phase::Starting).count()
    }

    /// The executor of `framework` with the fewest, but at least `n`, free slots: the others stay whole for those who need many.
    pub(crate) fn with_free(&self, framework: &FrameworkId, n: u32) -> Option<ExecutorId> {
        let fits = self.of(framework).filter(|(_, e)| e.phase == Phase::Up && e.free_slots() >= n);
        fits.min_by_key(|(_, e)| e.free_slots()).map(|(id, _)| id.clone())
    }

    /// The executor of `framework` with the most free slots, if it has any.
    pub(crate) fn with_most_free(&self, framework: &FrameworkId) -> Option<(ExecutorId, u32)> {
        let up = self.of(framework).filter(|(_, e)| e.phase == Phase::Up && e.free_slots() > 0);
        up.max_by_key(|(_, e)| e.free_slots()).map(|(id, e)| (id.clone(), e.free_slots()))
    }

    /// Whether those on their way, or on their way back, have to be waited for, when so many attempts want a slot: as long as they may do,
    /// and not too many at once.
    pub(crate) fn awaits(&self, framework: &FrameworkId, waiting: usize) -> bool {
        let (mut starting, mut slots) = (0, 0);
        for (_, executor) in self.of(framework) {
            match executor.phase {
                Phase::Starting => (starting, slots) = (starting + 1, slots + executor.slots.len()),
                // Nobody knows what is free in these.
                Phase::Away | Phase::Back => return true,
                Phase::Up | Phase::Stopping(_) => {}
            }
        }
        starting > 0 && (slots >= waiting || starting >= MOST_STARTING)
    }

    /// Executors to be stopped now because they are idle for too long.
    pub(crate) fn take_idle(&mut self, now: Time, after: DurationMs) -> Vec<ExecutorId> {
        let idle = |e: &Executor| e.kind == ExecutorKind::Shared && e.phase == Phase::Up && e.is_idle() && now >= e.idle_since.after(after);
        let ids: Vec<_> = self.executors.iter().filter(|(_, e)| idle(e)).map(|(id, _)| id.clone()).collect();
        for id in &ids {
            self.stop(id, now);
        }
        ids
    }

    /// An executor without work of any framework, to make room.
    pub(crate) fn any_idle(&self) -> Option<ExecutorId> {
        self.executors.iter().find(|(_, e)| e.kind == ExecutorKind::Shared && e.phase == Phase::Up && e.is_idle()).map(|(id, _)| id.clone())
    }

    /// Marks one as told to end.
    pub(crate) fn stop(&mut self, id: &ExecutorId, now: Time) {
        if let Some(executor) = self.executors.get_mut(id) {
            executor.phase = Phase::Stopping(Some(now.after(STOP_WITHIN)));
            self.touched.insert(id.clone());
        }
    }

    /// Executors that should have ended by now: named once.
    pub(crate) fn take_overdue(&mut self, now: Time) -> Vec<ExecutorId> {
        let mut ids = Vec::new();
        for (id, executor) in &mut self.executors {
            if let Phase::Stopping(deadline) = &mut executor.phase
                && deadline.is_some_and(|d| now >= d)
            {
                *deadline = None;
                ids.push(id.clone());
            }
        }
        ids
    }

    fn of<'a>(&'a self, framework: &'a FrameworkId) -> impl Iterator<Item = (&'a ExecutorId, &'a Executor)> {
        self.executors.iter().filter(move |(_, e)| e.kind == ExecutorKind::Shared && e.framework.as_ref() == Some(framework))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_taken_once_and_come_back() {
        let framework = FrameworkId::new("F").unwrap();
        let mut pool = Pool::default();
        let id = pool.add(Executor::new(ExecutorKind::Shared, Some(framework.clone()), 4, 0, Time(0))).unwrap();
        assert_eq!(pool.with_free(&framework, 1), None, "not up yet");
        pool.executors.get_mut(&id).unwrap().phase = Phase::Up;
        let e = pool.executors.get_mut(&id).unwrap();
        assert_eq!(e.reserve(Run(1), 3), [0, 1, 2]);
        assert_eq!(e.reserve(Run(2), 2), [3]);
        e.release(&[1], 0, Time(5));
        assert_eq!(e.reserve(Run(3), 1), [1]);
        assert_eq!(pool.with_free(&framework, 1), None);
    }

    #[test]
    fn those_that_are_used_once_are_nobodys_until_then() {
        let framework = FrameworkId::new("F").unwrap();
        let mut pool = Pool::default();
        let pooled = pool.add(Executor::new(ExecutorKind::Pooled, None, 1, 0, Time(0))).unwrap();
        let mut networked = Executor::new(ExecutorKind::Networked, Some(framework.clone()), 1, 0, Time(0));
        networked.only = Some(Run(7));
        let networked = pool.add(networked).unwrap();
        assert_eq!((pool.starting_once(), pool.coming(ExecutorKind::Pooled, None)), (2, 1));
        pool.executors.values_mut().for_each(|e| e.phase = Phase::Up);
        assert_eq!(pool.with_free(&framework, 1), None, "not for class instance");
        assert_eq!(pool.fresh(ExecutorKind::Pooled, None), Some(pooled.clone()));
        assert_eq!(pool.fresh(ExecutorKind::Networked, Some(Run(8))), None);
        assert_eq!(pool.fresh(ExecutorKind::Networked, Some(Run(7))), Some(networked));
        pool.executors.get_mut(&pooled).unwrap().used = true;
        assert_eq!(pool.fresh(ExecutorKind::Pooled, None), None);
        assert_eq!((pool.count(true), pool.count(false)), (2, 0));
    }
}
