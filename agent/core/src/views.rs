//! Read-only snapshots of the executors, for operators. Nothing here changes a decision.

use crate::agent::Agent;
use crate::executor::Phase;
use crate::losses::Loss;
use crate::parameters::ExecutorKind;
use smalti_types::{Bytes, ExecutorId, FrameworkId};

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

impl Agent {
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
