//! The client over real gRPC against a master that says what the test wants.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod master;

use master::{id, launch, master, offer, update};
use smalti_framework_sdk::types::protocol::{Call, FrameworkEvent};
use smalti_framework_sdk::types::{Filters, MasterEpoch, TaskState};
use smalti_framework_sdk::{Error, Event, Framework, Options};
use smalti_proto::v1;

#[tokio::test]
async fn a_lost_connection_is_made_again_under_the_same_id_and_open_tasks_are_reconciled() {
    let (options, mut peers) = master().await;
    let connecting = tokio::spawn(Framework::connect(options));
    let mut peer = peers.recv().await.unwrap();
    assert_eq!(peer.subscribed(1).await.framework_id, None);
    let (handle, mut events) = connecting.await.unwrap().unwrap();
    assert!(matches!(events.recv().await, Some(Event::Subscribed { .. })));

    peer.say(FrameworkEvent::Offers(vec![offer(1)])).await;
    let Some(Event::Offers(offers)) = events.recv().await else { panic!("offers expected") };
    handle.accept(vec![offers[0].id], vec![launch("t")], Filters::default()).await.unwrap();
    assert!(matches!(peer.call().await, v1::call::Call::Accept(_)));

    drop(peer);
    assert!(matches!(events.recv().await, Some(Event::Disconnected)));
    let mut peer = peers.recv().await.unwrap();
    assert_eq!(peer.subscribed(2).await.framework_id.as_deref(), Some("F1-1"));
    assert!(matches!(events.recv().await, Some(Event::Subscribed { epoch: MasterEpoch(2), .. })));
    let v1::call::Call::Reconcile(asked) = peer.call().await else { panic!("open tasks must be reconciled") };
    assert_eq!(asked.tasks[0].task, "t");

    peer.say(FrameworkEvent::Updates(vec![(None, update("t", 1, TaskState::Finished))])).await;
    let Some(Event::Update(u)) = events.recv().await else { panic!("an update expected") };
    u.ack.done();
    let acknowledgement = Call::try_from(v1::Call { call: Some(peer.call().await) }).unwrap();
    assert_eq!(acknowledgement, Call::Acknowledge(vec![("t".parse().unwrap(), 0, 1)]));

    handle.teardown().await.unwrap();
    assert!(matches!(peer.call().await, v1::call::Call::Teardown(_)));
}

#[tokio::test]
async fn many_updates_are_acknowledged_in_few_calls_and_none_is_lost() {
    const BATCHES: u32 = 200;
    const PER_BATCH: u32 = 500;
    let (options, mut peers) = master().await;
    let connecting = tokio::spawn(Framework::connect(options));
    let mut peer = peers.recv().await.unwrap();
    peer.subscribed(1).await;
    let (_handle, mut events) = connecting.await.unwrap().unwrap();
    let said = peer.events.clone();
    tokio::spawn(async move {
        for b in 0..BATCHES {
            let batch = (0..PER_BATCH).map(|i| (None, update(&format!("t{}", b * PER_BATCH + i), 1, TaskState::Finished))).collect();
            said.send(Ok(FrameworkEvent::Updates(batch).into())).await.unwrap();
        }
    });
    let handler = tokio::spawn(async move {
        let (mut seen, mut batch) = (0, Vec::new());
        while seen < BATCHES * PER_BATCH {
            events.recv_many(&mut batch, 1024).await;
            for event in batch.drain(..) {
                if let Event::Update(u) = event {
                    seen += 1;
                    u.ack.done();
                }
            }
        }
        events
    });
    let (mut calls, mut acknowledged) = (0, 0);
    while acknowledged < BATCHES * PER_BATCH {
        if let v1::call::Call::Acknowledge(a) = peer.call().await {
            calls += 1;
            acknowledged += u32::try_from(a.updates.len()).unwrap();
        }
    }
    handler.await.unwrap();
    assert_eq!(acknowledged, BATCHES * PER_BATCH);
    assert!(calls < acknowledged / 5, "{calls} calls for {acknowledged} updates");
}

#[tokio::test]
async fn a_scheduler_without_a_store_takes_over_and_one_that_was_taken_over_ends() {
    let (options, mut peers) = master().await;
    let connecting = tokio::spawn(Framework::connect(Options { id: Some(id()), ..options }));
    let mut peer = peers.recv().await.unwrap();
    let claim = |call| {
        let v1::call::Call::Subscribe(s) = call else { panic!("the first call must subscribe") };
        (s.life, s.turn)
    };
    assert_eq!(claim(peer.call().await), (1, 0));
    peer.say(FrameworkEvent::Fenced { life: 7, message: "another scheduler has it".into() }).await;
    let mut peer = peers.recv().await.unwrap();
    assert_eq!(claim(peer.call().await), (8, 0));
    peer.say(FrameworkEvent::Subscribed { framework: id(), epoch: MasterEpoch(1) }).await;
    let (_handle, mut events) = connecting.await.unwrap().unwrap();
    assert!(matches!(events.recv().await, Some(Event::Subscribed { .. })));
    drop(peer);
    assert!(matches!(events.recv().await, Some(Event::Disconnected)));
    let mut peer = peers.recv().await.unwrap();
    assert_eq!(claim(peer.call().await), (8, 1));
    peer.say(FrameworkEvent::Fenced { life: 9, message: "another scheduler has it".into() }).await;
    let Some(Event::Error(why)) = events.recv().await else { panic!("an error expected") };
    assert_eq!(why, "another scheduler has it");
}

#[tokio::test]
async fn a_refusal_and_an_absent_master_fail_the_connection_with_a_reason() {
    let (options, mut peers) = master().await;
    let connecting = tokio::spawn(Framework::connect(options));
    let peer = peers.recv().await.unwrap();
    peer.say(FrameworkEvent::Error("no more frameworks".into())).await;
    let error = connecting.await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::Refused { reason, .. } if reason == "no more frameworks"), "{error}");

    let nobody = smalti_test_ports::take_one();
    let error = Framework::connect(Options::new(nobody.address().to_string(), "test")).await.unwrap_err();
    assert!(error.to_string().contains("connection refused; start one with `smalti dev`"), "{error}");
}
