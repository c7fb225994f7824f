//! What can come into the client's core and what can go out. A feature starts as a variant of each.

use smalti_types::protocol::{Call, FrameworkEvent, Subscription};
use smalti_types::{AgentId, FrameworkId, MasterEpoch, Offer, OfferId, StatusUpdate, TaskId};

/// Names one update within the framework: repeats are dropped by it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpdateId {
    /// The task.
    pub task: TaskId,
    /// Its attempt.
    pub attempt: u32,
    /// The number in the attempt's stream; 0 needs no acknowledgement.
    pub seq: u64,
}

impl UpdateId {
    /// The name of `update`.
    #[must_use]
    pub fn of(update: &StatusUpdate) -> Self {
        Self { task: update.key.task.task.clone(), attempt: update.key.task.attempt, seq: update.key.seq }
    }
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A connection to the master stands; nothing was said on it yet.
    Connected,
    /// The connection is gone, with all that was in flight.
    Disconnected,
    /// The master said something.
    FromMaster(FrameworkEvent),
    /// The handler has taken these updates, those without a number included: they may be acknowledged.
    Handled(Vec<UpdateId>),
    /// The handler has let go of these updates without taking them: they are delivered again when they come again.
    NotHandled(Vec<UpdateId>),
    /// The handler asks something of the master.
    Call(Call),
    /// About 100 ms have gone by. Only reconciling and re-sending hang on it.
    Tick,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are updates, and each is moved only a few times")]
pub enum Message {
    /// Say this first on the new connection.
    Subscribe(Subscription),
    /// Send this to the master.
    ToMaster(Call),
    /// Give this connection up, and make another one.
    Reconnect,
    /// Give this to the handler, in this order.
    Deliver(Delivery),
}

/// What the handler gets.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are updates, and each is moved only a few times")]
pub enum Delivery {
    /// The subscription stands (again).
    Subscribed {
        /// The framework's id: keep it, and give it when subscribing in a later life.
        framework: FrameworkId,
        /// This life of the master.
        epoch: MasterEpoch,
    },
    /// The connection is gone; offers were rescinded before this, tasks run on, calls that must not be lost are kept.
    Disconnected,
    /// Resources held for this framework until it accepts or declines.
    Offers(Vec<Offer>),
    /// These offers are void.
    Rescind(Vec<OfferId>),
    /// A status update, once and in order per attempt; the handler says when it has taken it, unless `seq` is 0.
    Update {
        /// Where the task runs, when that is known.
        agent: Option<AgentId>,
        /// What happened.
        update: StatusUpdate,
    },
    /// An agent is gone.
    AgentLost {
        /// Which.
        agent: AgentId,
        /// Why.
        reason: String,
    },
    /// One call was wrong and had no effect.
    Refused {
        /// Which call.
        call: String,
        /// What was wrong.
        message: String,
    },
    /// The subscription ended for good. Nothing follows.
    Error(String),
}
