//! A master with one agent that finishes everything at once, over real gRPC.

use smalti_proto::v1::{self, framework_service_server as framework, operator_service_server as operator};
use smalti_types::protocol::{Call, FrameworkEvent};
use smalti_types::{
    AgentId, ArrayDelta, Attributes, Bytes, FrameworkId, ItemBatch, ItemSet, LaunchArray, MasterEpoch, MilliCpus, Offer, OfferId,
    Operation, Reason, Resources, Role, StatusUpdate, TaskId, TaskKey, TaskState, Time,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// A scheduler of this master that listens on a free port and may read every file.
pub(crate) fn options(master: &str, dir: &std::path::Path) -> smalti_scheduler::Options {
    smalti_scheduler::Options {
        master: master.into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: dir.into(),
        file_root: vec!["/".into()],
        ..smalti_scheduler::Options::default()
    }
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

/// What tests look at and set.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Where the scheduler says that its job API is, with each subscription.
    pub(crate) announced: Vec<String>,
    pub(crate) framework_ids: Vec<Option<String>>,
    /// What the one agent has, in thousandths of a cpu; `None`: no agent.
    pub(crate) agent: Option<u64>,
    /// Whether launches end, or run for ever.
    pub(crate) finish: bool,
    pub(crate) acknowledged: usize,
    /// Numbers of the updates that were acknowledged.
    pub(crate) acks: Vec<u64>,
    /// Items of each assignment after a launch.
    pub(crate) assigned: Vec<ItemSet>,
    /// Where the present connection's events go.
    pub(crate) events: Option<mpsc::Sender<Result<v1::Event, Status>>>,
    /// How the subscription is answered instead, if so.
    pub(crate) refuse: Option<String>,
    /// Calls after the subscription.
    pub(crate) calls: usize,
    pub(crate) launched: Vec<String>,
}

#[derive(Clone, Default)]
pub(crate) struct FakeMaster {
    pub(crate) state: Arc<Mutex<State>>,
}

pub(crate) async fn start(agent: Option<u64>, finish: bool) -> (String, FakeMaster) {
    let master = FakeMaster::default();
    *master.state.lock().unwrap() = State { agent, finish, ..State::default() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder()
        .add_service(framework::FrameworkServiceServer::new(master.clone()))
        .add_service(operator::OperatorServiceServer::new(master.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, master)
}

fn resources(milli: u64) -> Resources {
    Resources::new(MilliCpus(milli), Bytes::gib(1))
}

#[tonic::async_trait]
impl framework::FrameworkService for FakeMaster {
    type SubscribeStream = Stream<v1::Event>;

    async fn subscribe(&self, request: Request<Streaming<v1::Call>>) -> Result<Response<Self::SubscribeStream>, Status> {
        let (events, receiver) = mpsc::channel(1024);
        self.state.lock().unwrap().events = Some(events.clone());
        let mut calls = request.into_inner();
        let session = Session { state: self.state.clone(), events, seqs: BTreeMap::new(), offers: 0, open: BTreeMap::new() };
        tokio::spawn(async move {
            let mut session = session;
            while let Ok(Some(call)) = calls.message().await {
                session.call(call).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Session {
    state: Arc<Mutex<State>>,
    events: mpsc::Sender<Result<v1::Event, Status>>,
    seqs: BTreeMap<(TaskId, u32), u64>,
    offers: u64,
    /// Open array parts, with their slots.
    open: BTreeMap<TaskId, u32>,
}

impl Session {
    async fn say(&self, event: FrameworkEvent) {
        // The scheduler may be gone.
        let _ = self.events.send(Ok(event.into())).await;
    }

    async fn call(&mut self, call: v1::Call) {
        if let Some(v1::call::Call::Subscribe(subscribe)) = call.call {
            let info = subscribe.info.unwrap();
            {
                let mut state = self.state.lock().unwrap();
                state.announced.push(info.services["smalti.v1.Jobs"].clone());
                state.framework_ids.push(subscribe.framework_id);
            }
            let refuse = self.state.lock().unwrap().refuse.take();
            if let Some(reason) = refuse {
                return self.say(FrameworkEvent::Error(reason)).await;
            }
            let subscribed = v1::SubscribedEvent {
                version: Some(smalti_proto::version::current()),
                framework_id: "F1-1".into(),
                epoch: 1,
                heartbeat_interval_ms: 0,
            };
            let _ = self.events.send(Ok(v1::Event { event: Some(v1::event::Event::Subscribed(subscribed)) })).await;
            self.offer().await;
            return;
        }
        self.state.lock().unwrap().calls += 1;
        match Call::try_from(call).unwrap() {
            Call::Revive => self.offer().await,
            Call::Accept { operations, .. } => {
                for operation in operations {
                    self.launch(operation).await;
                }
                self.offer().await;
            }
            Call::AssignItems { task, batch, open, .. } => {
                let finish = {
                    let mut state = self.state.lock().unwrap();
                    state.assigned.push(batch.items.clone());
                    state.finish
                };
                if finish {
                    self.run_items(&task, batch, open).await;
                }
            }
            Call::Kill { task, attempt, .. } => self.update(&task, attempt, TaskState::Killed, Reason::KilledByRequest, None).await,
            Call::Acknowledge(updates) => {
                let mut state = self.state.lock().unwrap();
                state.acknowledged += updates.len();
                state.acks.extend(updates.iter().map(|(_, _, seq)| *seq));
            }
            _ => {}
        }
    }

    async fn offer(&mut self) {
        let Some(milli) = self.state.lock().unwrap().agent else { return };
        self.offers += 1;
        let offer = Offer {
            id: OfferId { epoch: MasterEpoch(1), number: self.offers },
            framework: FrameworkId::new("F1-1").unwrap(),
            role: Role::default(),
            agent: AgentId::new("a1").unwrap(),
            hostname: "host".into(),
            resources: resources(milli),
            attributes: Attributes::default(),
            holdings: Vec::new(),
        };
        self.say(FrameworkEvent::Offers(vec![offer])).await;
    }

    async fn launch(&mut self, operation: Operation) {
        let finish = self.state.lock().unwrap().finish;
        match operation {
            Operation::Launch(launch) => {
                self.state.lock().unwrap().launched.push(launch.task.to_string());
                self.update(&launch.task, launch.attempt, TaskState::Running, Reason::None, None).await;
                if finish {
                    self.update(&launch.task, launch.attempt, TaskState::Finished, Reason::None, None).await;
                }
            }
            Operation::LaunchArray(LaunchArray { task, slots, batch, open, .. }) => {
                self.state.lock().unwrap().launched.push(task.to_string());
                self.open.insert(task.clone(), slots);
                if finish {
                    self.run_items(&task, batch, open).await;
                }
            }
        }
    }

    async fn run_items(&mut self, task: &TaskId, batch: ItemBatch, open: bool) {
        let Some(slots) = self.open.get(task).copied() else { return };
        let slots = if open { slots } else { 0 };
        let delta = ArrayDelta { finished: batch.items, slots, ..ArrayDelta::default() };
        let state = if open { TaskState::Running } else { TaskState::Finished };
        if !open {
            self.open.remove(task);
        }
        self.update(task, 0, state, Reason::None, Some(delta)).await;
    }

    async fn update(&mut self, task: &TaskId, attempt: u32, state: TaskState, reason: Reason, array: Option<ArrayDelta>) {
        let seq = self.seqs.entry((task.clone(), attempt)).or_default();
        *seq += 1;
        let key = TaskKey { framework: FrameworkId::new("F1-1").unwrap(), task: task.clone(), attempt };
        let mut update = StatusUpdate::new(key, *seq, state, reason, "", Time(1));
        update.array = array;
        update.exit_code = (state == TaskState::Finished).then_some(0);
        self.say(FrameworkEvent::Updates(vec![(AgentId::new("a1").ok(), update)])).await;
    }
}

#[tonic::async_trait]
impl operator::OperatorService for FakeMaster {
    type ReadSandboxStream = Stream<v1::ReadReply>;

    async fn cluster(&self, _: Request<v1::Empty>) -> Result<Response<v1::ClusterInfo>, Status> {
        Ok(Response::new(v1::ClusterInfo::default()))
    }

    async fn list_agents(&self, _: Request<v1::Empty>) -> Result<Response<v1::AgentList>, Status> {
        let agent = |milli| {
            let total = Some(resources(milli).into());
            let info = v1::AgentInfo { id: "a1".into(), hostname: "host".into(), total: total.clone(), ..Default::default() };
            v1::AgentStatus { info: Some(info), state: "active".into(), free: total, ..Default::default() }
        };
        Ok(Response::new(v1::AgentList { agents: self.state.lock().unwrap().agent.map(agent).into_iter().collect() }))
    }

    async fn list_frameworks(&self, _: Request<v1::Empty>) -> Result<Response<v1::FrameworkList>, Status> {
        Ok(Response::new(v1::FrameworkList::default()))
    }

    async fn list_offers(&self, _: Request<v1::Empty>) -> Result<Response<v1::OfferList>, Status> {
        Ok(Response::new(v1::OfferList::default()))
    }

    /// Every output is a line that says whose it is: tasks by their id, items by their number.
    async fn read_sandbox(&self, request: Request<v1::SandboxRead>) -> Result<Response<Self::ReadSandboxStream>, Status> {
        let read = request.into_inner();
        let Some(v1::sandbox_read::What::Output(output)) = read.what else { return Err(Status::not_found("no such file")) };
        let task = read.task.unwrap().task;
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let chunk = |item: Option<u64>, text: String| {
                let chunk = v1::OutputChunk { item, stream: v1::OutputStream::Stdout.into(), data: text.into(), attempt: 0 };
                Ok(v1::ReadReply { message: Some(v1::read_reply::Message::Chunk(chunk)) })
            };
            match output.items {
                None => sender.send(chunk(None, format!("{task}\n"))).await.unwrap(),
                Some(items) => {
                    for item in items.ranges.iter().flat_map(|r| r.first..r.end) {
                        if sender.send(chunk(Some(item), format!("{item}\n"))).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
