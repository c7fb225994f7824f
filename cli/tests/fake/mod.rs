//! A cluster that does what a test tells it: the three services that the client talks to, in memory, on one loopback port.
//!
//! A job's name says how it goes, see [`Script`]. Nothing is run.

use smalti_proto::v1::bundle_service_server::{BundleService, BundleServiceServer};
use smalti_proto::v1::jobs_server::{Jobs, JobsServer};
use smalti_proto::v1::operator_service_server::{OperatorService, OperatorServiceServer};
use smalti_proto::v1::*;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

type Answer<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How a job goes, by its name.
enum Script {
    /// `exit-N`: the guest says hello on both streams and ends with N.
    Exit(i32),
    /// `reason-R`: it fails with this reason.
    Reason(String),
    /// `hang`: it goes on until it is killed.
    Hang,
    /// `flood`: it writes until it is killed.
    Flood,
    /// `quiet`: it writes to stderr only.
    Quiet,
    /// `late`: its agent does not answer the first read of its output.
    Late,
    /// `lost`: it succeeds and its output cannot be had.
    Lost,
}

impl Script {
    fn of(name: &str) -> Self {
        match name.split_once('-') {
            Some(("exit", n)) => Self::Exit(n.parse().unwrap()),
            Some(("reason", r)) => Self::Reason(r.to_owned()),
            _ => match name {
                "hang" => Self::Hang,
                "flood" => Self::Flood,
                "lost" => Self::Lost,
                "late" => Self::Late,
                "quiet" => Self::Quiet,
                _ => Self::Exit(0),
            },
        }
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) bundles: BTreeMap<Vec<u8>, (String, Vec<u8>)>,
    pub(crate) submitted: Vec<SubmitRequest>,
    pub(crate) killed: Vec<String>,
    pub(crate) uploads: u32,
    /// In which a bundle was looked for last.
    pub(crate) role: String,
    reads: u32,
    views: BTreeMap<String, watch::Sender<JobView>>,
}

#[derive(Clone, Default)]
pub(crate) struct Fake {
    pub(crate) state: Arc<Mutex<State>>,
    address: String,
}

impl Fake {
    /// Serves until the test's runtime ends.
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self { address: listener.local_addr().unwrap().to_string(), ..Self::default() };
        let server = tonic::transport::Server::builder()
            .add_service(OperatorServiceServer::new(fake.clone()))
            .add_service(BundleServiceServer::new(fake.clone()))
            .add_service(JobsServer::new(fake.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        fake
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn last(&self) -> SubmitRequest {
        self.state.lock().unwrap().submitted.last().unwrap().clone()
    }

    fn view(&self, job: &str) -> Result<watch::Receiver<JobView>, Status> {
        let state = self.state.lock().unwrap();
        state.views.get(job).map(watch::Sender::subscribe).ok_or_else(|| Status::not_found(format!("no job or task {job}")))
    }
}

fn replies<T: Send + 'static>(all: Vec<T>) -> Replies<T> {
    Box::pin(tokio_stream::iter(all.into_iter().map(Ok)))
}

fn chunk(stream: OutputStream, item: Option<u64>, data: &str) -> ReadReply {
    let chunk = OutputChunk { item, stream: stream.into(), data: data.to_owned().into(), attempt: 0 };
    ReadReply { message: Some(read_reply::Message::Chunk(chunk)) }
}

#[tonic::async_trait]
impl OperatorService for Fake {
    type ReadSandboxStream = Replies<ReadReply>;

    async fn cluster(&self, _: Request<Empty>) -> Answer<ClusterInfo> {
        let services = [("smalti.v1.Jobs".to_owned(), self.address.clone())].into();
        Ok(Response::new(ClusterInfo { services, ..Default::default() }))
    }

    async fn list_agents(&self, _: Request<Empty>) -> Answer<AgentList> {
        let total = Resources { milli_cpus: 2000, mem_bytes: 1 << 30, ports: vec![PortRange { first: 1, last: 2 }], ..Default::default() };
        let info = AgentInfo { id: "A1".into(), hostname: "h".into(), total: Some(total.clone()), ..Default::default() };
        let agent =
            AgentStatus { info: Some(info), state: "active".into(), free: Some(total), registered_us: 1_000_000, ..Default::default() };
        Ok(Response::new(AgentList { agents: vec![agent] }))
    }

    async fn list_frameworks(&self, _: Request<Empty>) -> Answer<FrameworkList> {
        let info = FrameworkInfo { name: "batch".into(), role: "default".into(), ..Default::default() };
        let framework = FrameworkStatus { id: "F1".into(), info: Some(info), state: "active".into(), ..Default::default() };
        Ok(Response::new(FrameworkList { frameworks: vec![framework] }))
    }

    async fn list_offers(&self, _: Request<Empty>) -> Answer<OfferList> {
        Ok(Response::new(OfferList { offers: vec![Offer { id: Some(OfferId { epoch: 1, number: 2 }), ..Default::default() }] }))
    }

    async fn read_sandbox(&self, _: Request<SandboxRead>) -> Answer<Self::ReadSandboxStream> {
        Err(Status::unimplemented("not needed"))
    }
}

#[tonic::async_trait]
impl BundleService for Fake {
    type GetStream = Replies<BundleData>;

    async fn push(&self, request: Request<Streaming<PushChunk>>) -> Answer<BundleInfo> {
        let mut stream = request.into_inner();
        let Some(push_chunk::Message::Start(start)) = stream.message().await?.and_then(|c| c.message) else {
            return Err(Status::invalid_argument("no start"));
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.message().await? {
            if let Some(push_chunk::Message::Data(data)) = chunk.message {
                bytes.extend_from_slice(&data);
            }
        }
        if blake3::hash(&bytes).as_bytes()[..] != start.digest[..] || bytes.len() as u64 != start.length {
            return Err(Status::invalid_argument("the digest does not match"));
        }
        let mut state = self.state.lock().unwrap();
        state.uploads += 1;
        state.bundles.insert(start.digest.to_vec(), (start.name, bytes));
        Ok(Response::new(BundleInfo { digest: start.digest, length: start.length, ..Default::default() }))
    }

    async fn stat(&self, request: Request<BundleDigest>) -> Answer<BundleInfo> {
        let BundleDigest { digest, role } = request.into_inner();
        let mut state = self.state.lock().unwrap();
        state.role = role;
        let (name, bytes) = state.bundles.get(&digest[..]).ok_or_else(|| Status::not_found("no such bundle"))?;
        Ok(Response::new(BundleInfo { digest, length: bytes.len() as u64, name: name.clone(), ..Default::default() }))
    }

    async fn list(&self, _: Request<BundleQuery>) -> Answer<BundleList> {
        let state = self.state.lock().unwrap();
        let info = |(digest, (name, bytes)): (&Vec<u8>, &(String, Vec<u8>))| BundleInfo {
            digest: digest.clone().into(),
            length: bytes.len() as u64,
            name: name.clone(),
            created_us: 1_000_000,
            existed: true,
            roles: None,
        };
        Ok(Response::new(BundleList { bundles: state.bundles.iter().map(info).collect() }))
    }

    async fn get(&self, request: Request<BundleDigest>) -> Answer<Self::GetStream> {
        let state = self.state.lock().unwrap();
        let (_, bytes) = state.bundles.get(&request.into_inner().digest[..]).ok_or_else(|| Status::not_found("no such bundle"))?;
        Ok(Response::new(replies(bytes.chunks(7).map(|c| BundleData { data: c.to_vec().into() }).collect())))
    }

    async fn remove(&self, request: Request<BundleDigest>) -> Answer<Empty> {
        let removed = self.state.lock().unwrap().bundles.remove(&request.into_inner().digest[..]);
        removed.map(|_| Response::new(Empty {})).ok_or_else(|| Status::not_found("no such bundle"))
    }

    async fn grant(&self, request: Request<BundleRight>) -> Answer<BundleInfo> {
        let right = request.into_inner();
        let info = self.stat(Request::new(BundleDigest { digest: right.digest, role: String::new() })).await?.into_inner();
        Ok(Response::new(BundleInfo { roles: Some(BundleRoles { roles: vec![right.role] }), ..info }))
    }

    async fn revoke(&self, request: Request<BundleRight>) -> Answer<BundleInfo> {
        let info = self.stat(Request::new(BundleDigest { digest: request.into_inner().digest, role: String::new() })).await?.into_inner();
        Ok(Response::new(BundleInfo { roles: Some(BundleRoles::default()), ..info }))
    }
}

#[tonic::async_trait]
impl Jobs for Fake {
    type WatchStream = Replies<JobView>;
    type OutputStream = Replies<ReadReply>;
    type SandboxStream = Replies<ReadReply>;

    async fn defaults(&self, _: Request<Empty>) -> Answer<JobDefaults> {
        Ok(Response::new(JobDefaults { role: "batch".into() }))
    }

    async fn submit(&self, request: Request<SubmitRequest>) -> Answer<SubmitReply> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let job = format!("j{}", state.submitted.len() + 1);
        let is_map = matches!(request.kind, Some(submit_request::Kind::Map(_)));
        let mut view = JobView {
            job: job.clone(),
            name: request.name.clone(),
            kind: if is_map { "map" } else { "run" }.into(),
            state: "FINISHED".into(),
            submitted_us: 1_000_000,
            ..Default::default()
        };
        match Script::of(&request.name) {
            Script::Exit(0) => view.exit_code = Some(0),
            Script::Exit(n) => (view.state, view.reason, view.exit_code) = ("FAILED".into(), "EXIT_CODE".into(), Some(n)),
            Script::Reason(r) => (view.state, view.reason, view.message) = ("FAILED".into(), r, "so it is".into()),
            Script::Hang | Script::Flood => view.state = "RUNNING".into(),
            Script::Lost | Script::Late | Script::Quiet => {}
        }
        state.views.insert(job.clone(), watch::Sender::new(view));
        state.submitted.push(request);
        Ok(Response::new(SubmitReply { job, notes: Vec::new() }))
    }

    async fn watch(&self, request: Request<JobRef>) -> Answer<Self::WatchStream> {
        let views = WatchStream::new(self.view(&request.into_inner().job)?);
        Ok(Response::new(Box::pin(views.map(Ok))))
    }

    async fn list_jobs(&self, _: Request<ListJobsRequest>) -> Answer<JobList> {
        let jobs = self.state.lock().unwrap().views.values().map(|v| v.borrow().clone()).collect();
        Ok(Response::new(JobList { jobs }))
    }

    /// Two pages of one task each.
    async fn list_tasks(&self, request: Request<ListTasksRequest>) -> Answer<TaskList> {
        let (task, next_page) = if request.into_inner().page.is_empty() { ("t1", "2") } else { ("t2", "") };
        let view = TaskView { task: task.into(), state: TaskState::Running.into(), ..Default::default() };
        Ok(Response::new(TaskList { tasks: vec![view], next_page: next_page.into() }))
    }

    async fn output(&self, request: Request<OutputRequest>) -> Answer<Self::OutputStream> {
        let request = request.into_inner();
        let view = self.view(&request.job_or_task)?;
        let (name, is_map) = (view.borrow().name.clone(), view.borrow().kind == "map");
        let ended = async move {
            let mut view = view;
            let _ = view.wait_for(|v| v.state != "RUNNING").await;
        };
        let line = |text: &str| Ok(chunk(OutputStream::Stdout, None, text));
        let reads = {
            let mut state = self.state.lock().unwrap();
            state.reads += 1;
            state.reads
        };
        Ok(Response::new(match Script::of(&name) {
            Script::Late if reads == 1 => return Err(Status::deadline_exceeded("agent a1 did not answer within 10 s")),
            Script::Lost => {
                let error = read_reply::Message::Error("the agent is gone".into());
                replies(vec![ReadReply { message: Some(error) }])
            }
            Script::Hang => {
                let begun = tokio_stream::once(line("begun\n"));
                Box::pin(begun.chain(futures::stream::once(ended).filter_map(|()| None)))
            }
            Script::Flood => {
                let lines = std::iter::repeat_n(line(&"y\n".repeat(10_000)), 1_000_000);
                Box::pin(tokio_stream::iter(lines))
            }
            Script::Quiet if request.stream == i32::from(OutputStream::Stdout) => replies(Vec::new()),
            _ if is_map => replies(vec![
                chunk(OutputStream::Stdout, Some(0), "zero\n"),
                chunk(OutputStream::Stderr, Some(0), "oops"),
                chunk(OutputStream::Stdout, Some(1), "one\n"),
                chunk(OutputStream::Stderr, Some(1), "oh\n"),
            ]),
            _ if request.stream == i32::from(OutputStream::Stderr) => replies(vec![chunk(OutputStream::Stderr, None, "err\n")]),
            _ => replies(vec![chunk(OutputStream::Stdout, None, "out\n"), chunk(OutputStream::Stderr, None, "err\n")]),
        }))
    }

    async fn sandbox(&self, request: Request<SandboxRequest>) -> Answer<Self::SandboxStream> {
        let text = match request.into_inner().what {
            Some(sandbox_request::What::List(_)) => r#"[{"name":"stdout","size":4}]"#.to_owned(),
            Some(sandbox_request::What::File(file)) => format!("this is {file}"),
            None => return Err(Status::invalid_argument("what?")),
        };
        let (a, b) = text.split_at(5);
        Ok(Response::new(replies(vec![chunk(OutputStream::Stdout, None, a), chunk(OutputStream::Stdout, None, b)])))
    }

    async fn kill(&self, request: Request<KillRequest>) -> Answer<Empty> {
        let job = request.into_inner().job_or_task;
        self.view(&job)?;
        let mut state = self.state.lock().unwrap();
        state.views[&job].send_modify(|v| (v.state, v.reason) = ("KILLED".into(), "KILLED_BY_REQUEST".into()));
        state.killed.push(job);
        Ok(Response::new(Empty {}))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Answer<ExplainReply> {
        self.view(&request.into_inner().job_or_task)?;
        Ok(Response::new(ExplainReply { text: "it waits\nfor cpus\n".into(), json: r#"{"waits_for":"cpus"}"#.into() }))
    }
}
