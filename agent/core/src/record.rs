//! What must outlive the agent's process: the records that a step makes durable before its messages leave.
//!
//! Owns the vocabulary. A record says how something is, not what happened: written again it changes nothing, and the last one of its
//! name counts. Deliberately absent: bytes and files (the checkpoint's), and what becomes of them after a restart (`restore`).

use crate::event::Run;
use crate::parameters::ExecutorKind;
use crate::queue::HandOut;
use smalti_types::{
    ArrayDelta, DurationMs, ExecutorId, FrameworkId, ItemSet, Launch, LaunchArray, Role, StatusUpdate, TaskId, TaskKey, Time, Usage,
};
use std::sync::Arc;

/// One thing that must be known after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Numbers that are never given twice.
    Numbers {
        /// The last run.
        runs: u64,
        /// The last executor.
        executors: u64,
    },
    /// Launches that were seen and are over; written by snapshots.
    Seen {
        /// Whose.
        framework: FrameworkId,
        /// Tasks with their attempts, in the order they came.
        keys: Vec<(TaskId, u32)>,
    },
    /// An attempt was taken in. Written once.
    Launched {
        /// Its number.
        run: Run,
        /// Which attempt.
        key: TaskKey,
        /// Its framework's role.
        role: Role,
        /// What kind of executor runs it.
        kind: ExecutorKind,
        /// What one slot's disk takes of its executor's memory.
        disk_memory: u64,
        /// Its description.
        work: LaunchedWork,
    },
    /// What items of a part have in common. Written once, kept as long as the part's state names it.
    HandOut {
        /// Which part.
        run: Run,
        /// Which hand-out of the part.
        number: u64,
        /// Attempt and splits.
        hand_out: Arc<HandOut>,
    },
    /// Where an attempt is. Nothing is written of one that has not begun.
    Attempt {
        /// Which.
        run: Run,
        /// Where it is.
        state: AttemptState,
    },
    /// What happened to items and is in no update yet.
    Delta {
        /// Which part.
        run: Run,
        /// Counts the part's deltas; those up to [`PartState::told`] are in updates.
        number: u64,
        /// What happened.
        delta: ArrayDelta,
    },
    /// An update that is not acknowledged. A terminal one says that its attempt has ended.
    Update {
        /// Of which attempt.
        run: Run,
        /// The update.
        update: Box<StatusUpdate>,
    },
    /// Updates up to this number are acknowledged.
    Acknowledged {
        /// Of which attempt.
        run: Run,
        /// The number.
        seq: u64,
    },
    /// Nothing is left to say about an attempt.
    Removed {
        /// Which.
        run: Run,
    },
    /// An executor that is up.
    Executor {
        /// Which.
        executor: ExecutorId,
        /// What is known of it.
        state: ExecutorRecord,
    },
    /// What an executor said has taken effect up to this number.
    Heard {
        /// Which.
        executor: ExecutorId,
        /// The number.
        number: u64,
    },
    /// An executor is no more.
    ExecutorGone {
        /// Which.
        executor: ExecutorId,
    },
}

/// The description of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaunchedWork {
    /// A single task.
    Single(Arc<Launch>),
    /// An array part, without items.
    Part(Arc<LaunchArray>),
}

/// Where an attempt is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AttemptState {
    /// The slots that it was started in.
    pub place: Option<PlaceState>,
    /// Of a single task: when its executor was told to start it.
    pub began: Option<Time>,
    /// When its executor should have ended it.
    pub overdue: Option<Time>,
    /// A kill that was passed on.
    pub kill: Option<KillState>,
    /// Of an array part: its items.
    pub part: Option<PartState>,
}

/// Where an attempt was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceState {
    /// In which executor.
    pub executor: ExecutorId,
    /// In which of its slots.
    pub slots: Vec<u32>,
    /// Whether the executor said so.
    pub running: bool,
}

/// A kill that was passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KillState {
    /// How long the guest was given.
    pub grace: DurationMs,
    /// When it must be over.
    pub deadline: Time,
}

/// The accounts of an array part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartState {
    /// Slots that it holds.
    pub slots: u32,
    /// Whether more items may come.
    pub open: bool,
    /// Whether its executor was told that no more leases follow.
    pub ending: bool,
    /// When it began.
    pub started: Option<Time>,
    /// Slots that the last update spoke of.
    pub told_slots: u32,
    /// Usage of all items that updates spoke of.
    pub told_usage: Usage,
    /// Deltas up to this number are in updates.
    pub told: u64,
    /// Items that wait, by hand-out, in order.
    pub queued: Vec<(u64, ItemSet)>,
    /// Items in the hands of executors, by hand-out.
    pub leased: Vec<(u64, ItemSet)>,
    /// Of class `process`, once it has begun.
    pub lanes: Option<LanesState>,
}

/// The lanes of a part of class `process`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LanesState {
    /// Lanes that nothing runs in.
    pub free: Vec<u32>,
    /// The others.
    pub busy: Vec<LaneState>,
}

/// An executor with its item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneState {
    /// The executor.
    pub executor: ExecutorId,
    /// Its lane.
    pub number: u32,
    /// Its item.
    pub item: u64,
    /// Whether it was told to start it.
    pub started: bool,
}

/// What is known of an executor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorRecord {
    /// What it is for.
    pub kind: ExecutorKind,
    /// Whose tasks it runs.
    pub framework: Option<FrameworkId>,
    /// The only attempt that it is for.
    pub only: Option<Run>,
    /// Whether its only use has come.
    pub used: bool,
    /// How many slots it has.
    pub slots: u32,
    /// The highest number of a module that it was told to load.
    pub modules: u32,
    /// Whether it was told to end.
    pub stopping: bool,
}
