//! What was decided at one time, and making it durable: the client's records and the handler's data in one transaction.
//!
//! Owns when a commit is due. Notes that an update was taken outside a transaction are patient: they wait for the next commit,
//! up to [`PATIENCE`], and their acknowledgements with them. So a stream of states costs no fsync each.

use crate::error::Error;
use crate::events::{Ack, Acks};
use crate::options::Options;
use crate::store::{Store, StoreError, Writes};
use crate::transaction::Commit;
use smalti_framework_sdk_core::{Client, Event, Message, Record};
use smalti_types::{DurationMs, Effects, Time};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot};

/// How long an acknowledgement may wait for a commit to go with.
const PATIENCE: DurationMs = DurationMs(200);
/// A commit that takes no longer holds nobody up.
const SHORT: Duration = Duration::from_millis(1);

type Reply = oneshot::Sender<Result<(), Error>>;

/// Decided and not yet durable.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) effects: Effects<Record, Message>,
    writes: Writes,
    acks: Vec<Ack>,
    replies: Vec<Reply>,
}

impl Batch {
    /// Adds a transaction, unless it must not be.
    pub(crate) fn take(&mut self, client: &mut Client, now: Time, commit: Commit) {
        let Commit { transaction, reply } = commit;
        let updates = transaction.updates();
        if let Err(reason) = client.in_order(&updates) {
            // Whoever asked may have gone. Its acknowledgements are dropped with it: the updates come again.
            let _ = reply.send(Err(Error::Transaction(reason)));
            return;
        }
        self.effects.merge(client.step(now, Event::Handled(updates)));
        for call in transaction.calls {
            self.effects.merge(client.step(now, Event::Call(call)));
        }
        self.writes.extend(transaction.writes);
        self.acks.extend(transaction.acks);
        self.replies.push(reply);
    }
}

/// Makes batches durable.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Option<Arc<dyn Store>>,
    table: String,
    /// Whether the last commit took so long that other tasks of this thread should not have to wait for the next.
    slow: bool,
    /// Patient ones, and since when the first waits.
    waiting: Option<(Time, Effects<Record, Message>)>,
}

impl Keeper {
    /// The keeper, and the client as the store knows it.
    pub(crate) fn open(options: &Options) -> Result<(Client, Self), Error> {
        let keeper = Self { store: options.store.clone(), table: options.table.clone(), slow: true, waiting: None };
        let mut records: Vec<Record> = options.id.clone().map(Record::Subscribed).into_iter().collect();
        if let Some(store) = &options.store {
            for (key, value) in store.read(&options.table)? {
                let record =
                    Record::decode(&key, &value).map_err(|e| StoreError::Record { table: options.table.clone(), reason: e.to_string() })?;
                records.push(record);
            }
        }
        records.retain(|r| !(options.anew && matches!(r, Record::Subscribed(_))));
        Ok((Client::restore(options.info.clone(), records), keeper))
    }

    /// Takes what may wait.
    pub(crate) fn take(&mut self, now: Time, effects: Effects<Record, Message>) {
        self.waiting.get_or_insert_with(|| (now, Effects::default())).1.merge(effects);
    }

    /// What waits is due now.
    pub(crate) fn hurry(&mut self) {
        if let Some((since, _)) = &mut self.waiting {
            *since = Time(0);
        }
    }

    /// Makes `batch` durable, with what waits when it is time, and gives out its messages. An error is why it is not; then nothing
    /// of it may be told.
    pub(crate) fn commit(&mut self, batch: Batch, now: Time) -> Result<Vec<Message>, String> {
        let Batch { mut effects, writes, acks, replies } = batch;
        let keeps = !writes.is_empty() || effects.has_records();
        let is_due = |since: &Time| keeps || self.store.is_none() || now >= since.after(PATIENCE);
        if let Some((_, mut waiting)) = self.waiting.take_if(|(since, _)| is_due(since)) {
            waiting.merge(effects);
            effects = waiting;
        }
        if effects.is_empty() && replies.is_empty() {
            return Ok(Vec::new());
        }
        let (store, table, slow) = (&self.store, &self.table, &mut self.slow);
        let result = effects.commit(|records| match store {
            Some(store) => write(&**store, table, &records, writes, slow),
            // What a handler writes without a store is nowhere: it must not be taken for kept.
            None if !writes.is_empty() => Err(StoreError::Record { table: "(none)".into(), reason: "the framework has no store".into() }),
            None => Ok(()),
        });
        match result {
            Ok(messages) => {
                acks.into_iter().for_each(Ack::settled);
                // Whoever asked may have gone.
                replies.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
                Ok(messages)
            }
            Err(error) => {
                let reason = error.to_string();
                replies.into_iter().for_each(|reply| drop(reply.send(Err(Error::Transaction(reason.clone())))));
                Err(reason)
            }
        }
    }

    /// After the end: what handlers still take is kept, until the last handle is gone.
    pub(crate) async fn serve(mut self, mut client: Client, mut commits: mpsc::Receiver<Commit>, acks: &Acks) {
        loop {
            let mut more = Vec::new();
            let open = tokio::select! {
                n = commits.recv_many(&mut more, 64) => n > 0,
                () = acks.wait() => true,
            };
            let now = Time::from(std::time::SystemTime::now());
            let handled = Event::Handled(acks.take().handled);
            let mut batch = Batch { effects: client.step(now, handled), ..Batch::default() };
            more.into_iter().for_each(|commit| batch.take(&mut client, now, commit));
            if let Err(reason) = self.commit(batch, now) {
                tracing::error!(reason, "what a handler took after the end of its framework is not kept");
            }
            if !open {
                return;
            }
        }
    }
}

fn write(store: &dyn Store, table: &str, records: &[Record], handler: Writes, slow: &mut bool) -> Result<(), StoreError> {
    let mut writes = handler;
    for record in records {
        let (key, value) = record.encode();
        writes.set(table, key, value);
    }
    if writes.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    // Other tasks of this thread need not wait for an fsync that takes milliseconds where they can go elsewhere. For a short one, moving
    // them costs more than it takes.
    let result = match Handle::try_current().map(|h| h.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) if *slow => tokio::task::block_in_place(|| store.commit(&writes)),
        _ => store.commit(&writes),
    };
    *slow = began.elapsed() > SHORT;
    result
}
