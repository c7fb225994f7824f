//! A master in this process, and peers that speak its protocol by hand.

use smalti_master::{Options, Server};
use smalti_proto::{client, v1};
use smalti_types::protocol::{AgentCommand, Call, Claim, FrameworkEvent, Registration, Subscription};
use smalti_types::*;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use v1::agent_service_client::AgentServiceClient;
use v1::bundle_service_client::BundleServiceClient;
use v1::framework_service_client::FrameworkServiceClient;
use v1::operator_service_client::OperatorServiceClient;

/// Nothing here takes long: a wait beyond this is a hang.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn res(cpus: u64, gib: u64) -> Resources {
    Resources::new(MilliCpus(cpus * 1000), Bytes::gib(gib))
}

pub(crate) fn launch(name: &str, resources: Resources) -> Launch {
    let spec = TaskSpec {
        args: vec!["a".into()],
        env: vec![("K".into(), "V".into())],
        ..TaskSpec::new(BundleRef { digest: Digest::of(b"guest"), uri: None })
    };
    Launch { task: TaskId::new(name).unwrap(), attempt: 0, resources, spec }
}

async fn patient<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("this must not take so long")
}

pub(crate) struct Master {
    pub(crate) addr: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
    dir: tempfile::TempDir,
}

impl Master {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Options)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), change).await
    }

    async fn start_in(dir: tempfile::TempDir, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options { listen: "127.0.0.1:0".parse().unwrap(), data_dir: Some(dir.path().to_owned()), ..Options::default() };
        change(&mut options);
        let server = Server::bind(options).await.unwrap();
        let addr = server.local_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(server.serve(async move { drop(stopped.await) }));
        Self { addr, stop, serving, dir }
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        patient(self.serving).await.unwrap().unwrap();
    }

    /// Another life over the same directory.
    pub(crate) async fn restart(self) -> Self {
        let Self { stop, serving, dir, .. } = self;
        stop.send(()).unwrap();
        patient(serving).await.unwrap().unwrap();
        Self::start_in(dir, |_| {}).await
    }

    pub(crate) async fn channel(&self) -> Channel {
        client::connect(&self.addr.to_string()).await.unwrap()
    }

    pub(crate) async fn operators(&self) -> OperatorServiceClient<Channel> {
        OperatorServiceClient::new(self.channel().await)
    }

    pub(crate) async fn bundles(&self) -> BundleServiceClient<Channel> {
        BundleServiceClient::new(self.channel().await)
    }

    pub(crate) async fn wait_until(&self, holds: impl Fn(&[v1::AgentStatus]) -> bool) {
        let mut operators = self.operators().await;
        patient(async {
            while !holds(&operators.list_agents(v1::Empty {}).await.unwrap().into_inner().agents) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

pub(crate) async fn connect_agent(master: &Master, first: v1::agent_to_master::Message) -> Streaming<v1::MasterToAgent> {
    let (tx, rx) = mpsc::channel(4);
    tx.send(v1::AgentToMaster { message: Some(first) }).await.unwrap();
    let streaming = AgentServiceClient::new(master.channel().await).connect(ReceiverStream::new(rx)).await.unwrap().into_inner();
    drop(tx);
    streaming
}

pub(crate) struct FakeAgent {
    client: AgentServiceClient<Channel>,
    out: mpsc::Sender<v1::AgentToMaster>,
    inbound: Streaming<v1::MasterToAgent>,
    commands: VecDeque<AgentCommand>,
    /// How often it was told to beat.
    pub(crate) beat: Duration,
}

impl FakeAgent {
    pub(crate) fn registration(name: &str, total: Resources) -> Registration {
        let info = AgentInfo {
            id: AgentId::new(name).unwrap(),
            hostname: format!("{name}.example"),
            total,
            overhead: Resources::default(),
            attributes: Attributes::default(),
            isolation: BTreeMap::new(),
            boot_id: "boot".into(),
            incarnation: 1,
        };
        Registration { info, tasks: vec![], unacknowledged: vec![] }
    }

    pub(crate) async fn register(master: &Master, name: &str, total: Resources) -> Self {
        let mut client = AgentServiceClient::new(master.channel().await);
        let (out, rx) = mpsc::channel(16);
        let register = v1::agent_to_master::Message::Register(Self::registration(name, total).into());
        out.send(v1::AgentToMaster { message: Some(register) }).await.unwrap();
        let mut inbound = client.connect(ReceiverStream::new(rx)).await.unwrap().into_inner();
        let first = patient(inbound.message()).await.unwrap().unwrap().message.unwrap();
        let v1::master_to_agent::Message::Registered(registered) = first else { panic!("{first:?}") };
        assert!(registered.epoch > 0 && registered.heartbeat_interval_ms > 0);
        Self { client, out, inbound, commands: VecDeque::new(), beat: Duration::from_millis(registered.heartbeat_interval_ms) }
    }

    async fn send(&self, message: v1::agent_to_master::Message) {
        self.out.send(v1::AgentToMaster { message: Some(message) }).await.unwrap();
    }

    pub(crate) async fn update(&self, update: StatusUpdate) {
        self.send(v1::agent_to_master::Message::Updates(vec![update].into())).await;
    }

    pub(crate) async fn ask_for_a_lease(&self, asked: u64) {
        let heartbeat = v1::Heartbeat { lease_asked_us: Some(asked), ..v1::Heartbeat::default() };
        self.send(v1::agent_to_master::Message::Heartbeat(heartbeat)).await;
    }

    /// The stream's last word.
    pub(crate) async fn end(mut self) -> tonic::Status {
        loop {
            match patient(self.inbound.message()).await {
                Ok(message) => assert!(message.is_some(), "it ends with a word"),
                Err(status) => return status,
            }
        }
    }

    async fn message(&mut self) -> v1::master_to_agent::Message {
        loop {
            let message = patient(self.inbound.message()).await.unwrap().unwrap().message.unwrap();
            if !matches!(message, v1::master_to_agent::Message::Heartbeat(_)) {
                return message;
            }
        }
    }

    pub(crate) async fn command(&mut self) -> AgentCommand {
        while self.commands.is_empty() {
            let message = self.message().await;
            let v1::master_to_agent::Message::Commands(commands) = message else { panic!("{message:?}") };
            self.commands.extend(Vec::<AgentCommand>::try_from(commands).unwrap());
        }
        self.commands.pop_front().unwrap()
    }

    pub(crate) async fn read_request(&mut self) -> v1::ReadRequest {
        let message = self.message().await;
        let v1::master_to_agent::Message::Read(request) = message else { panic!("{message:?}") };
        request
    }

    pub(crate) async fn serve(&mut self, read_id: u64, chunks: &[&'static [u8]]) {
        use v1::read_reply::Message;
        let mut messages = vec![Message::ReadId(read_id)];
        for data in chunks {
            let data = bytes::Bytes::from_static(data);
            messages.push(Message::Chunk(v1::OutputChunk { item: None, stream: v1::OutputStream::Stdout.into(), data, attempt: 0 }));
        }
        let messages = messages.into_iter().map(|message| v1::ReadReply { message: Some(message) });
        self.client.serve_read(tokio_stream::iter(messages)).await.unwrap();
    }

    pub(crate) async fn refuse(&self, read_id: u64, reason: &str) {
        self.send(v1::agent_to_master::Message::ReadRefused(v1::ReadRefused { read_id, reason: reason.into() })).await;
    }
}

pub(crate) struct FakeFramework {
    out: mpsc::Sender<v1::Call>,
    inbound: Streaming<v1::Event>,
    pub(crate) id: FrameworkId,
}

impl FakeFramework {
    pub(crate) async fn subscribe(master: &Master, name: &str) -> Self {
        Self::subscribe_as(master, name, None).await
    }

    pub(crate) async fn subscribe_as(master: &Master, name: &str, id: Option<FrameworkId>) -> Self {
        let mut this = Self::ask(master, name, id, Claim::default()).await;
        let FrameworkEvent::Subscribed { framework, .. } = this.event().await else { panic!("not subscribed") };
        this.id = framework;
        this
    }

    /// Asks for a subscription; the answer is the first event.
    pub(crate) async fn ask(master: &Master, name: &str, id: Option<FrameworkId>, claim: Claim) -> Self {
        let info = FrameworkInfo {
            name: name.into(),
            principal: "somebody".into(),
            role: Role::default(),
            failover_timeout: DurationMs(3_600_000),
            services: BTreeMap::from([("test.v1".to_owned(), "127.0.0.1:1".to_owned())]),
        };
        let (out, rx) = mpsc::channel(16);
        out.send(Subscription { info, id, claim }.into()).await.unwrap();
        let mut client = FrameworkServiceClient::new(master.channel().await);
        let inbound = client.subscribe(ReceiverStream::new(rx)).await.unwrap().into_inner();
        Self { out, inbound, id: FrameworkId::new("none").unwrap() }
    }

    pub(crate) async fn send(&self, call: v1::Call) {
        self.out.send(call).await.unwrap();
    }

    pub(crate) async fn call(&self, call: Call) {
        self.send(call.into()).await;
    }

    pub(crate) async fn event(&mut self) -> FrameworkEvent {
        loop {
            let event = patient(self.inbound.message()).await.unwrap().unwrap();
            if !matches!(event.event, Some(v1::event::Event::Heartbeat(_))) {
                return event.try_into().unwrap();
            }
        }
    }

    /// The stream's last word.
    pub(crate) async fn end(mut self) -> tonic::Status {
        loop {
            match patient(self.inbound.message()).await {
                Ok(message) => assert!(message.is_some(), "it ends with a word"),
                Err(status) => return status,
            }
        }
    }

    pub(crate) async fn offer(&mut self) -> Offer {
        loop {
            if let FrameworkEvent::Offers(offers) = self.event().await {
                return offers.into_iter().next().unwrap();
            }
        }
    }

    pub(crate) async fn update(&mut self) -> StatusUpdate {
        loop {
            match self.event().await {
                FrameworkEvent::Updates(updates) => return updates.into_iter().next().unwrap().1,
                FrameworkEvent::Offers(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(crate) fn push(digest: Digest, data: &[u8], name: &str) -> impl futures::Stream<Item = v1::PushChunk> + Send + 'static {
    push_messages("", digest, (data.len() as u64, data), name)
}

/// In this role.
pub(crate) fn push_in(role: &str, digest: Digest, data: &[u8], name: &str) -> impl futures::Stream<Item = v1::PushChunk> + Send + 'static {
    push_messages(role, digest, (0, data), name)
}

pub(crate) fn push_announcing(digest: Digest, length: u64, data: &[u8]) -> impl futures::Stream<Item = v1::PushChunk> + Send + 'static {
    push_messages("", digest, (length, data), "")
}

fn push_messages(
    role: &str,
    digest: Digest,
    (length, data): (u64, &[u8]),
    name: &str,
) -> impl futures::Stream<Item = v1::PushChunk> + Send + 'static {
    use v1::push_chunk::Message;
    let start = v1::PushStart { digest: digest.as_bytes().to_vec().into(), length, name: name.into(), role: role.into() };
    let mut messages = vec![Message::Start(start)];
    messages.extend(data.chunks(1 << 20).map(|chunk| Message::Data(chunk.to_vec().into())));
    tokio_stream::iter(messages.into_iter().map(|message| v1::PushChunk { message: Some(message) }))
}

pub(crate) struct HttpAnswer {
    pub(crate) status: u16,
    headers: String,
    pub(crate) body: Vec<u8>,
}

impl HttpAnswer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.split_once(": ").filter(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()))
    }
}

/// One request as HTTP/1.1, by hand: the agents' way to fetch bundles must not need HTTP/2.
pub(crate) async fn http(addr: SocketAddr, method: &str, path: &str, headers: &str) -> HttpAnswer {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: master\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    patient(stream.read_to_end(&mut answer)).await.unwrap();
    let split = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("an HTTP answer");
    let headers = String::from_utf8_lossy(&answer[..split]).into_owned();
    let status = headers.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    HttpAnswer { status, headers, body: answer[split + 4..].to_vec() }
}
