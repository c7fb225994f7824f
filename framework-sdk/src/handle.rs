//! What a handler asks of the master.

use crate::error::Error;
use crate::transaction::{Commit, Transaction};
use smalti_types::protocol::Call;
use smalti_types::{AgentId, DurationMs, Filters, ItemBatch, Offer, OfferId, Operation, TaskId};
use tokio::sync::{mpsc, oneshot};

/// Sends calls. Cheap to clone. Waits while the queue to the master is full; an error means that the subscription ended.
///
/// A call that the master does not like comes back as [`crate::Event::Refused`]; what becomes of a launch comes as updates.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(crate) calls: mpsc::Sender<Vec<Call>>,
    pub(crate) commits: mpsc::Sender<Commit>,
}

impl Handle {
    /// Uses offers of one agent for `operations`; what is left over is free again.
    /// Every launch gets exactly one terminal update, also when the offers turn out to be void.
    ///
    /// # Errors
    /// [`Error::Closed`] after the subscription has ended.
    pub async fn accept(&self, offers: Vec<OfferId>, operations: Vec<Operation>, filters: Filters) -> Result<(), Error> {
        self.call(Call::Accept { offers, operations, filters }).await
    }

    /// Gives offers back.
    ///
    /// # Errors
    /// [`Error::Closed`] after the subscription has ended.
    pub async fn decline(&self, offers: Vec<OfferId>, filters: Filters) -> Result<(), Error> {
        self.call(Call::Decline { offers, filters }).await
    }

    /// Gives back everything in `offers` for `refuse_ms` milliseconds.
    ///
    /// # Errors
    /// [`Error::Closed`] after the subscription has ended.
    pub async fn decline_all(&self, offers: &[Offer], refuse_ms: u64) -> Result<(), Error> {
        self.decline(offers.iter().map(|o| o.id).collect(), Filters { refuse: DurationMs(refuse_ms) }).await
    }

    /// Forgets all refusals: offers come again.
    ///
    /// # Errors
    /// [`Error::Closed`] after the subscription has ended.
    pub async fn revive(&self) -> Result<(), Error> {
        self.call(Call::Revive).await
    }

    /// No offers until [`Handle::revive`].
    ///
    /// # Errors
    /// [`Error::Closed`] after the subscription has ended.
    pub async fn suppress(&self) -> Result<(), Error> {
        self.call(Call::Suppress).await
    }

    /// Stops a task or array part; kept over reconnections until a terminal update comes.
    ///
    /// # Errors
    /// [`Error::Closed`] after the subscription has ended.
    pub async fn kill(&self, task: TaskId, attempt: u32, grace: Option<DurationMs>) -> Result<(), Error> {
        self.call(Call::Kill { task, attempt, grace }).await
    }

    /// Hands more items to an array part, without an offer. Kept over reconnections, and sent again until the part has them.
    /// `open: false` with an empty batch closes the part.
    ///
    /// # Errors
    /// [`Error::Closed`] after the subscription has ended.
    pub async fn assign_items(&self, task: TaskId, attempt: u32, batch: ItemBatch, open: bool) -> Result<(), Error> {
        self.call(Call::AssignItems { task, attempt, batch, open }).await
    }

    /// Asks an array part for up to `most` items that it has not started.
    ///
    /// # Errors
    /// [`Error::Closed`] after the subscription has ended.
    pub async fn return_items(&self, task: TaskId, attempt: u32, most: u64) -> Result<(), Error> {
        self.call(Call::ReturnItems { task, attempt, most }).await
    }

    /// Asks for the state of tasks (of all when empty). Rarely needed: the library reconciles by itself.
    ///
    /// # Errors
    /// [`Error::Closed`] after the subscription has ended.
    pub async fn reconcile(&self, tasks: Vec<(TaskId, u32, Option<AgentId>)>) -> Result<(), Error> {
        self.call(Call::Reconcile(tasks)).await
    }

    /// Removes the framework and kills its tasks. The subscription ends.
    ///
    /// # Errors
    /// [`Error::Closed`] after the subscription has ended.
    pub async fn teardown(&self) -> Result<(), Error> {
        self.call(Call::Teardown).await
    }

    /// Does all that is in `transaction`, or nothing; returns once it is durable. Transactions that come at the same time
    /// share one fsync. Also after the subscription has ended, as long as the handle lives: then its calls go nowhere.
    ///
    /// # Errors
    /// When its updates are out of order, or the store fails.
    pub async fn commit(&self, transaction: Transaction) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.commits.send(Commit { transaction, reply }).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Any call.
    ///
    /// # Errors
    /// [`Error::Closed`] after the subscription has ended.
    pub async fn call(&self, call: Call) -> Result<(), Error> {
        self.calls(vec![call]).await
    }

    /// Several calls, in this order, as one step: cheaper than one by one.
    ///
    /// # Errors
    /// [`Error::Closed`] after the subscription has ended.
    pub async fn calls(&self, calls: Vec<Call>) -> Result<(), Error> {
        self.calls.send(calls).await.map_err(|_| Error::Closed)
    }
}
