//! What a handler receives, and how it says that it has taken an update.

use smalti_framework_sdk_core::UpdateId;
use smalti_types::{AgentId, FrameworkId, MasterEpoch, Offer, OfferId, StatusUpdate};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, mpsc};

/// What happened, in order.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are updates, and each is moved only a few times")]
pub enum Event {
    /// The subscription stands (again). Always the first event.
    Subscribed {
        /// The framework's id: keep it, and give it in [`crate::Options::id`] in a later life.
        framework: FrameworkId,
        /// This life of the master.
        epoch: MasterEpoch,
    },
    /// The connection is gone and being made again. Offers were rescinded before this, tasks run on; kills and item
    /// assignments are kept and sent later, launches are answered with DROPPED.
    Disconnected,
    /// Resources held for this framework until it accepts or declines.
    Offers(Vec<Offer>),
    /// These offers are void: accepting them has no effect but DROPPED.
    Rescind(Vec<OfferId>),
    /// A status update: once, in order per attempt, exactly one terminal one per attempt.
    Update(Update),
    /// An agent is gone; its tasks' statuses follow by themselves.
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
    /// The subscription ended for good. The last event.
    Error(String),
}

/// A status update and the means to acknowledge it.
#[derive(Debug)]
pub struct Update {
    /// Where the task runs, when that is known.
    pub agent: Option<AgentId>,
    /// What happened.
    pub update: StatusUpdate,
    /// Say [`Ack::done`] once what the update means has been kept.
    pub ack: Ack,
}

/// Acknowledges one update. Dropped without [`Ack::done`], the update counts as not taken and is delivered again later.
#[derive(Debug)]
pub struct Ack {
    /// `None`: already said.
    id: Option<UpdateId>,
    acks: Arc<Acks>,
}

impl Ack {
    pub(crate) fn new(update: &StatusUpdate, acks: &Arc<Acks>) -> Self {
        Self { id: Some(UpdateId::of(update)), acks: acks.clone() }
    }

    pub(crate) const fn id(&self) -> Option<&UpdateId> {
        self.id.as_ref()
    }

    /// The loop has taken it with a transaction.
    pub(crate) fn settled(mut self) {
        self.id = None;
    }

    /// The update has been taken: the agent may forget it. Cheap; acknowledgements travel in batches, and with a store the
    /// note of it becomes durable before, within a fraction of a second. To keep something of one's own at the same moment,
    /// see [`crate::Transaction::take`].
    pub fn done(mut self) {
        if let Some(id) = self.id.take() {
            self.acks.push(id, true);
        }
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.acks.push(id, false);
        }
    }
}

/// Collects what handlers say until the loop comes by. Bounded by the updates delivered and not yet answered.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    said: Mutex<Said>,
    news: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) handled: Vec<UpdateId>,
    pub(crate) not_handled: Vec<UpdateId>,
}

impl Acks {
    fn push(&self, id: UpdateId, handled: bool) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let first = said.handled.is_empty() && said.not_handled.is_empty();
        if handled {
            said.handled.push(id)
        } else {
            said.not_handled.push(id)
        }
        drop(said);
        if first {
            self.news.notify_one();
        }
    }

    pub(crate) async fn wait(&self) {
        self.news.notified().await;
    }

    pub(crate) fn take(&self) -> Said {
        std::mem::take(&mut *self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The stream of events. Dropping it ends the subscription's connection; the framework's tasks run on.
#[derive(Debug)]
pub struct Events {
    pub(crate) receiver: mpsc::Receiver<Event>,
}

impl Events {
    /// The next event; `None` after [`Event::Error`].
    pub async fn recv(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }

    /// Appends between 1 and `limit` events to `buffer`, waiting for the first only; 0 after [`Event::Error`].
    /// For handlers that commit in batches.
    pub async fn recv_many(&mut self, buffer: &mut Vec<Event>, limit: usize) -> usize {
        self.receiver.recv_many(buffer, limit).await
    }
}
