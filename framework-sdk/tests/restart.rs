//! Lives of a framework over one store, over real gRPC: what was committed is not done again, what was not is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod master;

use master::{Peer, launch, master, offer, update};
use smalti_framework_sdk::store::{MemoryStore, RedbStore, Rows, Store, StoreError, Writes};
use smalti_framework_sdk::types::protocol::{Call, FrameworkEvent};
use smalti_framework_sdk::types::{Filters, StatusUpdate, TaskState};
use smalti_framework_sdk::{Error, Event, Events, Framework, Handle, Options, Transaction, Update};
use smalti_proto::v1;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::mpsc;

/// Counts transactions, and fails when it is told to.
#[derive(Debug, Default)]
struct Watched {
    inner: MemoryStore,
    commits: AtomicUsize,
    fails: AtomicBool,
}

impl Store for Watched {
    fn read(&self, table: &str) -> Result<Rows, StoreError> {
        self.inner.read(table)
    }

    fn commit(&self, writes: &Writes) -> Result<(), StoreError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        if self.fails.load(Ordering::SeqCst) {
            return Err(StoreError::Record { table: "any".into(), reason: "the disk is gone".into() });
        }
        self.inner.commit(writes)
    }
}

/// One life: subscribed, past its first event.
async fn life(options: &Options, peers: &mut mpsc::Receiver<Peer>, epoch: u64) -> (Handle, Events, Peer, Option<String>) {
    let (handle, mut events) = Framework::start(options.clone()).unwrap();
    let mut peer = peers.recv().await.unwrap();
    let said = peer.subscribed(epoch).await.framework_id;
    assert!(matches!(events.recv().await, Some(Event::Subscribed { .. })));
    (handle, events, peer, said)
}

async fn next_update(events: &mut Events) -> Update {
    let Some(Event::Update(update)) = events.recv().await else { panic!("an update expected") };
    update
}

async fn acknowledged(peer: &mut Peer) -> Vec<u64> {
    let Call::Acknowledge(list) = Call::try_from(v1::Call { call: Some(peer.call().await) }).unwrap() else { panic!() };
    list.into_iter().map(|(_, _, seq)| seq).collect()
}

fn say(updates: Vec<StatusUpdate>) -> FrameworkEvent {
    FrameworkEvent::Updates(updates.into_iter().map(|u| (None, u)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handlers_data_and_the_number_of_its_update_are_kept_together() {
    let dir = tempfile::tempdir().unwrap();
    let (options, mut peers) = master().await;
    let path = dir.path().join("store.redb");
    {
        let store: Arc<RedbStore> = Arc::new(RedbStore::open(&path).unwrap());
        let options = options.clone().with_store(store.clone());
        let (handle, mut events, mut peer, said) = life(&options, &mut peers, 1).await;
        assert_eq!(said, None);
        peer.say(FrameworkEvent::Offers(vec![offer(1)])).await;
        let Some(Event::Offers(offers)) = events.recv().await else { panic!("offers expected") };
        let mut transaction = Transaction::new();
        transaction.put("mine", "t", "launched");
        let (offers, operations) = (vec![offers[0].id], vec![launch("t")]);
        transaction.call(Call::Accept { offers, operations, filters: Filters::default() });
        handle.commit(transaction).await.unwrap();
        assert!(matches!(peer.call().await, v1::call::Call::Accept(_)));
        peer.say(say(vec![update("t", 1, TaskState::Running), update("t", 2, TaskState::Finished)])).await;
        let (first, second) = (next_update(&mut events).await, next_update(&mut events).await);
        let mut transaction = Transaction::new();
        transaction.put("mine", "t", "running");
        transaction.take(first.ack);
        handle.commit(transaction).await.unwrap();
        assert_eq!(acknowledged(&mut peer).await, [1]);
        // It dies with the second update in its hands.
        std::mem::forget(second);
        drop((handle, events, options));
        while Arc::strong_count(&store) > 1 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
    let store: Arc<RedbStore> = Arc::new(RedbStore::open(&path).unwrap());
    assert_eq!(store.read("mine").unwrap(), [(b"t".to_vec(), b"running".to_vec())]);
    let options = options.with_store(store.clone());
    let (handle, mut events, mut peer, said) = life(&options, &mut peers, 1).await;
    assert_eq!(said.as_deref(), Some("F1-1"), "it is the same framework");
    let v1::call::Call::Reconcile(asked) = peer.call().await else { panic!("the launch must be reconciled") };
    assert_eq!(asked.tasks[0].task, "t");
    peer.say(say(vec![update("t", 1, TaskState::Running), update("t", 2, TaskState::Finished)])).await;
    let second = next_update(&mut events).await;
    assert_eq!(second.update.key.seq, 2, "the first is known");
    assert_eq!(acknowledged(&mut peer).await, [1]);
    let mut transaction = Transaction::new();
    transaction.delete("mine", "t");
    transaction.take(second.ack);
    handle.commit(transaction).await.unwrap();
    assert_eq!(acknowledged(&mut peer).await, [2]);
    assert_eq!(store.read("mine").unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_the_build_before_numbers_is_taken_over_with_its_first_number() {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let packed: &[u8] = include_bytes!("../../tests/fixtures/formats-1/scheduler.redb.gz");
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let (options, mut peers) = master().await;
    let options = Options { table: "framework/default".into(), ..options.with_store(Arc::new(RedbStore::open(&path).unwrap())) };
    let (_handle, _events) = Framework::start(options).unwrap();
    let mut peer = peers.recv().await.unwrap();
    let v1::call::Call::Subscribe(said) = peer.call().await else { panic!("the first call must subscribe") };
    let id = said.framework_id.unwrap();
    assert_eq!((id.as_str(), said.life, said.turn), ("F66158f3fa401f-1", 1, 0));
    let (framework, epoch) = (id.parse().unwrap(), smalti_framework_sdk::types::MasterEpoch(1));
    peer.say(FrameworkEvent::Subscribed { framework, epoch }).await;
    let mut asked = std::collections::BTreeSet::new();
    while asked.len() < 8 {
        let v1::call::Call::Reconcile(list) = peer.call().await else { panic!("what it launched must be reconciled") };
        asked.extend(list.tasks.into_iter().map(|t| t.task));
    }
    let singles = ["j1-a787.t", "j2-6c35.t", "j4-c0d5.t", "j5-53e4.t"];
    assert!(singles.iter().all(|t| asked.contains(*t)), "{asked:?}");
}

#[tokio::test]
async fn updates_out_of_order_are_refused_and_come_again() {
    let (options, mut peers) = master().await;
    let store = Arc::new(Watched::default());
    let options = options.with_store(store.clone());
    let (handle, mut events, mut peer, _) = life(&options, &mut peers, 1).await;
    let both = || say(vec![update("t", 1, TaskState::Running), update("t", 2, TaskState::Finished)]);
    peer.say(both()).await;
    let (first, second) = (next_update(&mut events).await, next_update(&mut events).await);
    let mut transaction = Transaction::new();
    transaction.put("mine", "k", "v");
    transaction.take(second.ack);
    let refused = handle.commit(transaction).await.unwrap_err();
    assert!(matches!(&refused, Error::Transaction(why) if why.contains("update 1 of t#0")), "{refused}");
    assert_eq!(store.read("mine").unwrap(), [], "all or nothing");
    let mut transaction = Transaction::new();
    transaction.take(first.ack);
    handle.commit(transaction).await.unwrap();
    assert_eq!(acknowledged(&mut peer).await, [1]);
    peer.say(both()).await;
    assert_eq!(next_update(&mut events).await.update.key.seq, 2);
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_told() {
    let (options, mut peers) = master().await;
    let store = Arc::new(Watched::default());
    let options = options.with_store(store.clone());
    let (handle, mut events, mut peer, _) = life(&options, &mut peers, 1).await;
    peer.say(say(vec![update("t", 1, TaskState::Finished)])).await;
    let taken = next_update(&mut events).await;
    store.fails.store(true, Ordering::SeqCst);
    let mut transaction = Transaction::new();
    transaction.take(taken.ack);
    let failed = handle.commit(transaction).await.unwrap_err();
    assert!(failed.to_string().contains("the disk is gone"), "{failed}");
    let Some(Event::Error(why)) = events.recv().await else { panic!("the end expected") };
    assert!(why.contains("the disk is gone"), "{why}");
    while let Ok(Some(call)) = peer.calls.message().await {
        assert!(!matches!(call.call, Some(v1::call::Call::Acknowledge(_))), "an acknowledgement of what is not kept");
    }
}

#[tokio::test]
async fn states_that_are_taken_one_by_one_share_transactions_and_are_acknowledged_after_them() {
    const UPDATES: u64 = 300;
    let (options, mut peers) = master().await;
    let store = Arc::new(Watched::default());
    let options = options.with_store(store.clone());
    let (_handle, mut events, mut peer, _) = life(&options, &mut peers, 1).await;
    let before = store.commits.load(Ordering::SeqCst);
    for n in 0..UPDATES {
        peer.say(say(vec![update(&format!("t{n}"), 1, TaskState::Running)])).await;
        next_update(&mut events).await.ack.done();
    }
    let mut seen = 0;
    while seen < UPDATES {
        seen += acknowledged(&mut peer).await.len() as u64;
        assert!(store.read("framework").unwrap().len() as u64 > seen, "acknowledged and not kept");
    }
    let commits = store.commits.load(Ordering::SeqCst) - before;
    assert!(commits < 100, "{commits} transactions for {UPDATES} updates");
}
