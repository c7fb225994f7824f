//! Read-only snapshots of the executors, for operators. Nothing here changes a decision.

use crate::agent::Agent;
use crate::event::Run;
use crate::executor::Phase;
use crate::losses::Loss;
use crate::parameters::ExecutorKind;
use crate::task::Work;
use smalti_types::{Bytes, ExecutorId, FrameworkId, ItemSet, TaskKey};
use std::collections::BTreeSet;

/// Where an executor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutorState {
    /// Asked for.
    Starting,
    /// Of an earlier life of the agent, which takes it up again.
    Recovering,
    /// Takes tasks.
    Up,
    /// Told to end.
    Stopping,
}

/// One executor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorView {
    /// Its name.
    pub id: ExecutorId,
    /// What it is for.
    pub kind: ExecutorKind,
    /// Whose tasks it runs; `None`: it waits in the pool for its only task.
    pub framework: Option<FrameworkId>,
    /// Where it is.
    pub state: ExecutorState,
    /// Slots that it has.
    pub slots: usize,
    /// Slots that are taken.
    pub busy: usize,
    /// Its memory limit now.
    pub memory_limit: Bytes,
}

/// Items that an executor had when it ended, and where their outcomes may be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasedItems {
    /// Of which part.
    pub run: Run,
    /// Which attempt.
    pub key: TaskKey,
    /// Items, by their attempt.
    pub items: Vec<(u32, ItemSet)>,
    /// Numbers of the output files of the executor's slots.
    pub segments: Vec<u32>,
}

impl Agent {
    /// Items that this executor holds: what it has written about them in its ledgers counts, if it said nothing.
    #[must_use]
    pub fn leased_in(&self, id: &ExecutorId) -> Vec<LeasedItems> {
        let Some(executor) = self.pool.executors.get(id) else { return Vec::new() };
        let runs: BTreeSet<Run> = executor.slots.iter().filter_map(|s| s.run).collect();
        let parts = runs.into_iter().filter_map(|run| {
            let task = self.tasks.get(&run)?;
            let Work::Part(part) = &task.work else { return None };
            let (items, segments) = match (part.lanes.lane_of(id), task.phase.place()) {
                (Some((lane, item)), _) => {
                    let only = ItemSet::range(item, item + 1);
                    let items = part.leased_with().into_iter().map(|(attempt, items)| (attempt, items.intersection(&only)));
                    (items.filter(|(_, items)| !items.is_empty()).collect(), vec![lane])
                }
                // Slots that left before have said everything.
                (None, Some(place)) => (part.leased_with(), place.slots.clone()),
                (None, None) => return None,
            };
            Some(LeasedItems { run, key: task.key.clone(), items, segments })
        });
        parts.filter(|p| !p.items.is_empty()).collect()
    }

    /// Frameworks that lost executors of late.
    pub fn losses(&self) -> impl Iterator<Item = (&FrameworkId, &Loss)> {
        self.losses.iter()
    }

    /// Every executor, by id.
    pub fn executor_views(&self) -> impl Iterator<Item = ExecutorView> {
        self.pool.executors.iter().map(|(id, e)| ExecutorView {
            id: id.clone(),
            kind: e.kind,
            framework: e.framework.clone(),
            state: match e.phase {
                Phase::Starting => ExecutorState::Starting,
                Phase::Away | Phase::Back => ExecutorState::Recovering,
                Phase::Up => ExecutorState::Up,
                Phase::Stopping(_) => ExecutorState::Stopping,
            },
            slots: e.slots.len(),
            busy: e.slots.iter().filter(|s| s.run.is_some()).count(),
            memory_limit: e.limit(),
        })
    }
}
