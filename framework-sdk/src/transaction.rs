//! What a handler does in one transaction: its own data, the updates that it has taken, and calls that follow from both.

use crate::error::Error;
use crate::events::Ack;
use crate::store::Writes;
use smalti_framework_sdk_core::UpdateId;
use smalti_types::protocol::Call;
use tokio::sync::oneshot;

/// Gathered by a handler, given to [`crate::Handle::commit`]: all of it happens, or nothing.
///
/// After a crash, whatever was not committed comes again, and whatever was does not: a handler that keeps its state only
/// here sees every update exactly once. Calls are made after the rest is durable, and launches among them are known to
/// the next life, which finds out what became of them.
#[derive(Debug, Default)]
pub struct Transaction {
    pub(crate) writes: Writes,
    pub(crate) acks: Vec<Ack>,
    pub(crate) calls: Vec<Call>,
}

impl Transaction {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives a key of a table of the handler's a value. Names that begin with `framework` are the library's.
    pub fn put(&mut self, table: &str, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.writes.put(table, key, value);
    }

    /// Removes a key.
    pub fn delete(&mut self, table: &str, key: impl Into<Vec<u8>>) {
        self.writes.delete(table, key);
    }

    /// Further writes.
    pub fn write(&mut self, writes: Writes) {
        self.writes.extend(writes);
    }

    /// The update has been taken by what this transaction writes. Updates of one attempt must be taken in their order.
    pub fn take(&mut self, ack: Ack) {
        self.acks.push(ack);
    }

    /// Something to ask of the master once all this is durable.
    pub fn call(&mut self, call: Call) {
        self.calls.push(call);
    }

    pub(crate) fn updates(&self) -> Vec<UpdateId> {
        self.acks.iter().filter_map(Ack::id).cloned().collect()
    }
}

/// A transaction on its way to the loop, with who waits for it.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) transaction: Transaction,
    pub(crate) reply: oneshot::Sender<Result<(), Error>>,
}
