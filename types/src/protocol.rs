//! What the processes say to each other, as values: the cores take these in and give them out, the simulation's network
//! carries them unchanged, and `smalti-proto` turns them into bytes.

use crate::framework::{AgentInfo, FrameworkInfo};
use crate::id::{AgentId, FrameworkId, MasterEpoch, OfferId, Role, TaskId, TaskKey};
use crate::offer::{Filters, Offer, Operation};
use crate::resources::Resources;
use crate::status::{StatusUpdate, UpdateKey};
use crate::task::{ItemBatch, Launch, LaunchArray};
use crate::task_state::TaskState;
use crate::time::{BootTime, DurationMs};

/// Part of the reason with which a master ends a subscription under an id that it has removed: the only reason for a
/// scheduler to become a new framework.
pub const REMOVED_FRAMEWORK: &str = "was removed; subscribe without an id to become a new one";

/// What the master tells an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentCommand {
    /// Start a task.
    Launch {
        /// Whose it is.
        framework: FrameworkId,
        /// Under which role that framework has its resources: the agent's operator may have rules for it.
        role: Role,
        /// What to start.
        launch: Launch,
    },
    /// Start a part of a task array.
    LaunchArray {
        /// Whose it is.
        framework: FrameworkId,
        /// Under which role that framework has its resources: the agent's operator may have rules for it.
        role: Role,
        /// What to start.
        launch: LaunchArray,
    },
    /// More items for a running part. `open: false` with an empty batch closes it.
    AssignItems {
        /// The part.
        task: TaskKey,
        /// The items.
        batch: ItemBatch,
        /// Whether more may follow.
        open: bool,
    },
    /// Give back up to `most` items that have not been started: another part waits for work.
    ReturnItems {
        /// The part.
        task: TaskKey,
        /// How many at most.
        most: u64,
    },
    /// Stop a task or a whole part.
    Kill {
        /// Which attempt.
        task: TaskKey,
        /// Overrides the grace period of its limits.
        grace: Option<DurationMs>,
    },
    /// The framework has this update; it need not be sent again.
    Acknowledge(UpdateKey),
    /// Answer to a heartbeat: exclusive tasks of this agent may run for this long after the heartbeat was made.
    Lease {
        /// When the agent made the heartbeat, by its own clock: handed back as it came.
        asked: BootTime,
        /// For how long.
        lease: DurationMs,
    },
}

/// A task that an agent still has when it registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningTask {
    /// Which attempt.
    pub key: TaskKey,
    /// Its state.
    pub state: TaskState,
    /// What it holds now: for array parts, its slots' sum.
    pub resources: Resources,
    /// For array parts, what one slot holds.
    pub slot_resources: Option<Resources>,
    /// It runs under a lease: at most one attempt of it at a time.
    pub exclusive: bool,
}

/// An agent's first message on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The agent.
    pub info: AgentInfo,
    /// What it still runs.
    pub tasks: Vec<RunningTask>,
    /// Updates not yet acknowledged, in order per task.
    pub unacknowledged: Vec<StatusUpdate>,
}

/// What a framework asks of the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Use offers of one agent for operations; what is left over is free again.
    Accept {
        /// Offers of one agent.
        offers: Vec<OfferId>,
        /// What to start on them.
        operations: Vec<Operation>,
        /// For what is left over.
        filters: Filters,
    },
    /// Give offers back.
    Decline {
        /// Which.
        offers: Vec<OfferId>,
        /// How long not to offer them again.
        filters: Filters,
    },
    /// Forget this framework's filters and offer again.
    Revive,
    /// No offers until [`Call::Revive`].
    Suppress,
    /// Stop a task or array part.
    Kill {
        /// Which.
        task: TaskId,
        /// Which attempt.
        attempt: u32,
        /// Overrides the grace period of its limits.
        grace: Option<DurationMs>,
    },
    /// These updates have been handled: (task, attempt, sequence number).
    Acknowledge(Vec<(TaskId, u32, u64)>),
    /// Send the current state of these tasks (task, attempt, agent if known), or of all when empty.
    Reconcile(Vec<(TaskId, u32, Option<AgentId>)>),
    /// More items for a running array part, without a new offer.
    AssignItems {
        /// The part.
        task: TaskId,
        /// Its attempt.
        attempt: u32,
        /// The items.
        batch: ItemBatch,
        /// Whether more may follow.
        open: bool,
    },
    /// Ask for up to `most` unstarted items back.
    ReturnItems {
        /// The part.
        task: TaskId,
        /// Its attempt.
        attempt: u32,
        /// How many at most.
        most: u64,
    },
    /// Remove the framework and kill its tasks.
    Teardown,
}

/// A framework's first message on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The framework.
    pub info: FrameworkInfo,
    /// Its id from before, for fail-over.
    pub id: Option<FrameworkId>,
    /// Which scheduler of this framework it is.
    pub claim: Claim,
}

/// Orders all subscriptions under one id, whenever they are heard: a greater one takes over, one that is not greater is refused. So a
/// subscription of a scheduler that is dead by now cannot end its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Claim {
    /// Grows from one life of the scheduler to the next, and to whoever takes over from it. 0: a scheduler of an earlier build, which has
    /// no such number; among those, the last that is heard counts.
    pub life: u64,
    /// Grows with each connection of that life.
    pub turn: u64,
}

impl Claim {
    /// Whether who says this may take the framework from who said `before`.
    #[must_use]
    pub fn follows(self, before: Self) -> bool {
        self > before || (self.life == 0 && before.life == 0)
    }
}

/// What the master tells a framework.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameworkEvent {
    /// The subscription stands.
    Subscribed {
        /// The framework's id: keep it for fail-over.
        framework: FrameworkId,
        /// This life of the master.
        epoch: MasterEpoch,
    },
    /// Resources held for this framework.
    Offers(Vec<Offer>),
    /// These offers are void.
    Rescind(Vec<OfferId>),
    /// Status updates with the agent they come from; sequence number 0 needs no acknowledgement.
    Updates(Vec<(Option<AgentId>, StatusUpdate)>),
    /// An agent is gone.
    AgentLost {
        /// Which.
        agent: AgentId,
        /// Why.
        reason: String,
    },
    /// One call was wrong; the subscription goes on.
    Refused {
        /// Which call.
        call: String,
        /// What was wrong, naming the field.
        message: String,
    },
    /// The subscription ends.
    Error(String),
    /// The subscription is refused, because another scheduler has the framework.
    Fenced {
        /// That one's [`Claim::life`]: who is to take over from it says a greater one.
        life: u64,
        /// The same in words.
        message: String,
    },
}
