//! The client over real gRPC against a master that says what the test wants.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use smalti_framework_sdk::types::protocol::{Call, FrameworkEvent};
use smalti_framework_sdk::types::{
    Attributes, BundleRef, Bytes, Digest, Filters, FrameworkId, Launch, MasterEpoch, MilliCpus, Offer, OfferId, Operation, Reason,
    Resources, Role, StatusUpdate, TaskId, TaskKey, TaskSpec, TaskState, Time,
};
use smalti_framework_sdk::{Error, Event, Framework, Options};
use smalti_proto::v1;
use smalti_proto::v1::framework_service_server::{FrameworkService, FrameworkServiceServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Reply = Result<v1::Event, Status>;

/// Hands every connection to the test.
struct FakeMaster(mpsc::Sender<Peer>);

struct Peer {
    calls: Streaming<v1::Call>,
    events: mpsc::Sender<Reply>,
}

#[tonic::async_trait]
impl FrameworkService for FakeMaster {
    type SubscribeStream = ReceiverStream<Reply>;
    async fn subscribe(&self, request: Request<Streaming<v1::Call>>) -> Result<Response<Self::SubscribeStream>, Status> {
        let (events, receiver) = mpsc::channel(64);
        let peer = Peer { calls: request.into_inner(), events };
        self.0.send(peer).await.map_err(|_| Status::unavailable("test over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Peer {
    async fn say(&self, event: FrameworkEvent) {
        self.events.send(Ok(event.into())).await.unwrap();
    }

    async fn call(&mut self) -> v1::call::Call {
        loop {
            let call = self.calls.message().await.unwrap().expect("the client is there").call.unwrap();
            // The question for all that the master knows, with which every life begins.
            if !matches!(&call, v1::call::Call::Reconcile(r) if r.tasks.is_empty()) {
                return call;
            }
        }
    }

    async fn subscribed(&mut self, epoch: u64) -> v1::SubscribeCall {
        let v1::call::Call::Subscribe(s) = self.call().await else { panic!("the first call must subscribe") };
        self.say(FrameworkEvent::Subscribed { framework: id(), epoch: MasterEpoch(epoch) }).await;
        s
    }
}

fn id() -> FrameworkId {
    FrameworkId::new("F1-1").unwrap()
}

async fn master() -> (Options, mpsc::Receiver<Peer>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, peers) = mpsc::channel(8);
    let server = tonic::transport::Server::builder().add_service(FrameworkServiceServer::new(FakeMaster(sender)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (Options::new(address, "test"), peers)
}

fn update(task: &str, seq: u64, state: TaskState) -> StatusUpdate {
    let key = TaskKey { framework: id(), task: TaskId::new(task).unwrap(), attempt: 0 };
    StatusUpdate::new(key, seq, state, Reason::None, "", Time(0))
}

fn launch(task: &str) -> Operation {
    let spec = TaskSpec::new(BundleRef { digest: Digest::of(b"x"), uri: None });
    let resources = Resources::new(MilliCpus(100), Bytes::mib(16));
    Operation::Launch(Launch { task: TaskId::new(task).unwrap(), attempt: 0, resources, spec })
}

#[tokio::test]
async fn a_lost_connection_is_made_again_under_the_same_id_and_open_tasks_are_reconciled() {
    let (options, mut peers) = master().await;
    let connecting = tokio::spawn(Framework::connect(options));
    let mut peer = peers.recv().await.unwrap();
    assert_eq!(peer.subscribed(1).await.framework_id, None);
    let (handle, mut events) = connecting.await.unwrap().unwrap();
    assert!(matches!(events.recv().await, Some(Event::Subscribed { .. })));

    let offer = Offer {
        id: OfferId { epoch: MasterEpoch(1), number: 1 },
        framework: id(),
        role: Role::default(),
        agent: "a1".parse().unwrap(),
        hostname: "h".into(),
        resources: Resources::new(MilliCpus(1000), Bytes::gib(1)),
        attributes: Attributes::default(),
    };
    peer.say(FrameworkEvent::Offers(vec![offer])).await;
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
async fn a_refusal_and_an_absent_master_fail_the_connection_with_a_reason() {
    let (options, mut peers) = master().await;
    let connecting = tokio::spawn(Framework::connect(options));
    let peer = peers.recv().await.unwrap();
    peer.say(FrameworkEvent::Error("no more frameworks".into())).await;
    let error = connecting.await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::Refused { reason, .. } if reason == "no more frameworks"), "{error}");

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = Framework::connect(Options::new(format!("127.0.0.1:{port}"), "test")).await.unwrap_err();
    assert!(error.to_string().contains("connection refused; start one with `smalti dev`"), "{error}");
}
