//! A master that says what the test wants.

use smalti_framework_sdk::Options;
use smalti_framework_sdk::types::protocol::FrameworkEvent;
use smalti_framework_sdk::types::{
    Attributes, BundleRef, Bytes, Digest, FrameworkId, Launch, MasterEpoch, MilliCpus, Offer, OfferId, Operation, Reason, Resources, Role,
    StatusUpdate, TaskId, TaskKey, TaskSpec, TaskState, Time,
};
use smalti_proto::v1;
use smalti_proto::v1::framework_service_server::{FrameworkService, FrameworkServiceServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Reply = Result<v1::Event, Status>;

/// Hands every connection to the test.
struct FakeMaster(mpsc::Sender<Peer>);

pub(crate) struct Peer {
    pub(crate) calls: Streaming<v1::Call>,
    pub(crate) events: mpsc::Sender<Reply>,
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
    pub(crate) async fn say(&self, event: FrameworkEvent) {
        self.events.send(Ok(event.into())).await.unwrap();
    }

    pub(crate) async fn call(&mut self) -> v1::call::Call {
        loop {
            let call = self.calls.message().await.unwrap().expect("the client is there").call.unwrap();
            // The question for all that the master knows, with which every life begins.
            if !matches!(&call, v1::call::Call::Reconcile(r) if r.tasks.is_empty()) {
                return call;
            }
        }
    }

    pub(crate) async fn subscribed(&mut self, epoch: u64) -> v1::SubscribeCall {
        let v1::call::Call::Subscribe(s) = self.call().await else { panic!("the first call must subscribe") };
        self.say(FrameworkEvent::Subscribed { framework: id(), epoch: MasterEpoch(epoch) }).await;
        s
    }
}

pub(crate) fn id() -> FrameworkId {
    FrameworkId::new("F1-1").unwrap()
}

pub(crate) async fn master() -> (Options, mpsc::Receiver<Peer>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, peers) = mpsc::channel(8);
    let server = tonic::transport::Server::builder().add_service(FrameworkServiceServer::new(FakeMaster(sender)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (Options::new(address, "test"), peers)
}

pub(crate) fn update(task: &str, seq: u64, state: TaskState) -> StatusUpdate {
    let key = TaskKey { framework: id(), task: TaskId::new(task).unwrap(), attempt: 0 };
    StatusUpdate::new(key, seq, state, Reason::None, "", Time(0))
}

pub(crate) fn launch(task: &str) -> Operation {
    let spec = TaskSpec::new(BundleRef { digest: Digest::of(b"x"), uri: None });
    let resources = Resources::new(MilliCpus(100), Bytes::mib(16));
    Operation::Launch(Launch { task: TaskId::new(task).unwrap(), attempt: 0, resources, spec })
}

pub(crate) fn offer(number: u64) -> Offer {
    Offer {
        id: OfferId { epoch: MasterEpoch(1), number },
        framework: id(),
        role: Role::default(),
        agent: "a1".parse().unwrap(),
        hostname: "h".into(),
        resources: Resources::new(MilliCpus(1000), Bytes::gib(1)),
        attributes: Attributes::default(),
        holdings: Vec::new(),
    }
}
