//! The agent as a process, against a master that is this test: real executors, real compiler, no control groups needed.
//!
//! Needs the executor's binary beside the agent's: `cargo build --release -p smalti-executor`.
#![allow(clippy::unwrap_used, reason = "a test")]

use smalti_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use smalti_proto::v1::{self, agent_to_master, master_to_agent, read_reply};
use smalti_types::protocol::AgentCommand;
use smalti_types::*;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Prints `hello` on stdout.
const HELLO: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "hello\n")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const 6))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;
const SPIN: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))"#;
const TRAP: &str = r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#;
const LIMIT: Duration = Duration::from_secs(60);

type Outbound = mpsc::Sender<Result<v1::MasterToAgent, Status>>;

/// What a master sees.
enum Seen {
    Connected(Outbound, Box<v1::Register>),
    Update(Box<StatusUpdate>),
    Deregistered,
    Read(u64, Vec<u8>, Option<String>),
    Beat(std::collections::HashMap<String, u64>),
    Executors(v1::ExecutorReports),
}

struct Fake {
    seen: mpsc::Sender<Seen>,
}

#[tonic::async_trait]
impl AgentService for Fake {
    type ConnectStream = ReceiverStream<Result<v1::MasterToAgent, Status>>;

    async fn connect(&self, request: Request<Streaming<v1::AgentToMaster>>) -> Result<Response<Self::ConnectStream>, Status> {
        let (to, from) = mpsc::channel(64);
        let (mut stream, seen) = (request.into_inner(), self.seen.clone());
        tokio::spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                match message.message.unwrap() {
                    agent_to_master::Message::Register(r) => {
                        let answer =
                            v1::Registered { version: Some(smalti_proto::version::current()), epoch: 7, heartbeat_interval_ms: 1_000 };
                        let message = v1::MasterToAgent { message: Some(master_to_agent::Message::Registered(answer)) };
                        to.send(Ok(message)).await.unwrap();
                        seen.send(Seen::Connected(to.clone(), Box::new(r))).await.unwrap();
                    }
                    agent_to_master::Message::Updates(batch) => {
                        for update in batch.updates {
                            let update = StatusUpdate::try_from(update).unwrap();
                            let _ = seen.send(Seen::Update(Box::new(update))).await;
                        }
                    }
                    agent_to_master::Message::Deregister(_) => {
                        let _ = seen.send(Seen::Deregistered).await;
                        return;
                    }
                    agent_to_master::Message::Heartbeat(beat) => {
                        let _ = seen.send(Seen::Beat(beat.counters)).await;
                    }
                    agent_to_master::Message::Executors(reports) => {
                        let _ = seen.send(Seen::Executors(reports)).await;
                    }
                    agent_to_master::Message::Locate(question) => {
                        let answer = v1::Located { ticket: question.ticket, address: String::new() };
                        let message = v1::MasterToAgent { message: Some(master_to_agent::Message::Located(answer)) };
                        let _ = to.send(Ok(message)).await;
                    }
                    agent_to_master::Message::ReadRefused(_)
                    | agent_to_master::Message::Holdings(_)
                    | agent_to_master::Message::LocateEnd(_) => {}
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(from)))
    }

    async fn serve_read(&self, request: Request<Streaming<v1::ReadReply>>) -> Result<Response<v1::Empty>, Status> {
        let mut stream = request.into_inner();
        let (mut id, mut data, mut error) = (0, Vec::new(), None);
        while let Some(reply) = stream.message().await? {
            match reply.message.unwrap() {
                read_reply::Message::ReadId(n) => id = n,
                read_reply::Message::Chunk(chunk) => data.extend(chunk.data),
                read_reply::Message::Error(e) => error = Some(e),
            }
        }
        let _ = self.seen.send(Seen::Read(id, data, error)).await;
        Ok(Response::new(v1::Empty {}))
    }
}

struct World {
    agent: Child,
    dir: tempfile::TempDir,
    seen: mpsc::Receiver<Seen>,
    to: Outbound,
    reads: u64,
}

impl Drop for World {
    fn drop(&mut self) {
        // Politely, so that it ends its executors; its log says what went wrong if it does not.
        let agent = nix::unistd::Pid::from_raw(i32::try_from(self.agent.id()).unwrap());
        let _ = nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGTERM);
        let until = std::time::Instant::now() + LIMIT;
        while matches!(self.agent.try_wait(), Ok(None)) && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default());
        }
    }
}

impl World {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tx, mut seen) = mpsc::channel(1_024);
        let service = AgentServiceServer::new(Fake { seen: tx }).max_decoding_message_size(64 << 20);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        let dir = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_smalti-agent"))
            .args(["--master", &address, "--cpus", "4", "--mem", "2GiB", "--disk", "1GiB", "--isolation", "auto", "--resources", "gpus=2"])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .arg("--file-root")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut world = Self { agent, dir, seen: mpsc::channel(1).1, to: mpsc::channel(1).0, reads: 0 };
        let Some(Seen::Connected(to, register)) = tokio::time::timeout(LIMIT, seen.recv()).await.expect("the agent registers") else {
            panic!("no registration first");
        };
        let info = AgentInfo::try_from(register.agent.unwrap()).unwrap();
        assert_eq!((info.total.cpus, info.total.custom("gpus")), (MilliCpus(4_000), MilliUnits(2_000)));
        assert!(info.id.as_str().starts_with("A-"));
        (world.seen, world.to) = (seen, to);
        world
    }

    async fn next(&mut self) -> Seen {
        tokio::time::timeout(LIMIT, self.seen.recv()).await.expect("something happens in time").expect("the master lives")
    }

    async fn update(&mut self) -> StatusUpdate {
        let until = tokio::time::Instant::now() + LIMIT;
        loop {
            match self.next().await {
                Seen::Update(update) => {
                    self.command(AgentCommand::Acknowledge(update.key.clone())).await;
                    // On a machine that is busy, a preparation says how far it is.
                    if update.state != TaskState::Staging {
                        return *update;
                    }
                }
                // It has lost this master for a moment, and says again what was not acknowledged.
                Seen::Connected(to, _) => self.to = to,
                _ => {}
            }
            // It beats on, whatever else it does.
            assert!(tokio::time::Instant::now() < until, "no update in time");
        }
    }

    async fn command(&self, command: AgentCommand) {
        let message = master_to_agent::Message::Commands(vec![command].into());
        self.to.send(Ok(v1::MasterToAgent { message: Some(message) })).await.unwrap();
    }

    fn spec(&self, name: &str, text: &str) -> TaskSpec {
        let path = self.dir.path().join(format!("{name}.wat"));
        std::fs::write(&path, text).unwrap();
        TaskSpec::new(BundleRef { digest: Digest::of(text.as_bytes()), uri: Some(format!("file://{}", path.display())) })
    }

    async fn launch(&self, name: &str, text: &str) {
        let resources = Resources::new(MilliCpus(1_000), Bytes::mib(64));
        let launch = Launch { task: TaskId::new(name).unwrap(), attempt: 0, resources, spec: self.spec(name, text) };
        self.command(AgentCommand::Launch { framework: framework(), role: Role::default(), launch }).await;
    }

    async fn read(&mut self, name: &str, what: v1::sandbox_read::What) -> Result<Vec<u8>, String> {
        self.reads += 1;
        let read = v1::SandboxRead { task: Some(key(name).into()), agent: String::new(), what: Some(what) };
        let message = master_to_agent::Message::Read(v1::ReadRequest { read_id: self.reads, read: Some(read) });
        self.to.send(Ok(v1::MasterToAgent { message: Some(message.clone()) })).await.unwrap();
        let until = tokio::time::Instant::now() + LIMIT;
        loop {
            match self.next().await {
                Seen::Read(id, data, error) => {
                    assert_eq!(id, self.reads);
                    return error.map_or(Ok(data), Err);
                }
                // What was asked on a connection that is gone, nobody answers.
                Seen::Connected(to, _) => {
                    self.to = to;
                    self.to.send(Ok(v1::MasterToAgent { message: Some(message.clone()) })).await.unwrap();
                }
                _ => {}
            }
            assert!(tokio::time::Instant::now() < until, "no answer in time");
        }
    }

    async fn stdout(&mut self, name: &str) -> Vec<u8> {
        self.read(name, v1::sandbox_read::What::Output(v1::OutputRead::default())).await.unwrap()
    }

    /// Executors' processes of this agent, by their command lines.
    fn executors(&self) -> Vec<i32> {
        let data: PathBuf = self.dir.path().join("data");
        let mut all = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains("smalti-executor") && (line.contains(&*data.to_string_lossy()) || is_below(pid, &self.agent)) {
                all.push(pid);
            }
        }
        all
    }
}

fn is_below(mut pid: i32, agent: &Child) -> bool {
    for _ in 0..8 {
        if u32::try_from(pid).is_ok_and(|p| p == agent.id()) {
            return true;
        }
        let Ok(stat) = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")) else { return false };
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)).and_then(|p| p.parse().ok());
        match parent {
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

fn framework() -> FrameworkId {
    FrameworkId::new("F1-1").unwrap()
}

fn key(name: &str) -> TaskKey {
    TaskKey { framework: framework(), task: TaskId::new(name).unwrap(), attempt: 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_run_print_trap_and_are_killed() {
    let mut w = World::start().await;
    w.launch("hello", HELLO).await;
    assert_eq!(w.update().await.state, TaskState::Running);
    let last = w.update().await;
    assert_eq!((last.state, last.exit_code, last.key.seq), (TaskState::Finished, Some(0), 2), "{last:?}");
    assert_eq!(w.stdout("hello").await, b"hello\n");
    let listing = w.read("hello", v1::sandbox_read::What::List("/".into())).await.unwrap();
    assert!(String::from_utf8(listing).unwrap().contains(r#""name":"stdout","type":"file","size":6"#));
    assert_eq!(w.read("hello", v1::sandbox_read::What::File("stdout".into())).await.unwrap(), b"hello\n");
    assert!(w.read("hello", v1::sandbox_read::What::File("../../../../agent_id".into())).await.is_err());
    assert!(w.read("other", v1::sandbox_read::What::List("/".into())).await.unwrap_err().contains("not on this agent"));

    w.launch("trap", TRAP).await;
    assert_eq!(w.update().await.state, TaskState::Running);
    let last = w.update().await;
    assert_eq!((last.state, last.reason), (TaskState::Failed, Reason::Trap), "{last:?}");

    w.launch("bad", "this is no module").await;
    let last = w.update().await;
    assert_eq!((last.state, last.reason), (TaskState::Failed, Reason::InvalidBundle), "{last:?}");

    w.launch("spin", SPIN).await;
    assert_eq!(w.update().await.state, TaskState::Running);
    w.command(AgentCommand::Kill { task: key("spin"), grace: Some(DurationMs(0)) }).await;
    assert_eq!(w.update().await.state, TaskState::Killing);
    let last = w.update().await;
    assert_eq!((last.state, last.reason), (TaskState::Killed, Reason::KilledByRequest), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_array_runs_each_item_once_and_gives_its_slots_back() {
    let mut w = World::start().await;
    let total = 100_000;
    let launch = LaunchArray {
        task: TaskId::new("array").unwrap(),
        attempt: 0,
        slot_resources: Resources::new(MilliCpus(1_000), Bytes::mib(64)),
        slots: 2,
        template: ArrayTemplate { spec: w.spec("array", HELLO), total_items: total, split_inputs: vec![] },
        batch: ItemBatch { items: ItemSet::range(0, total), attempt: 0, splits: vec![] },
        open: false,
    };
    w.command(AgentCommand::LaunchArray { framework: framework(), role: Role::default(), launch }).await;
    let (mut finished, mut updates) = (ItemSet::default(), 0);
    let last = loop {
        let update = w.update().await;
        let delta = update.array.clone().unwrap();
        assert!(finished.is_disjoint(&delta.finished) && delta.failed.is_empty() && delta.returned.is_empty(), "{delta:?}");
        finished.extend(&delta.finished);
        updates += 1;
        if update.state.is_terminal() {
            break update;
        }
    };
    assert_eq!((last.state, last.reason), (TaskState::Finished, Reason::None), "{last:?}");
    assert_eq!(finished, ItemSet::range(0, total));
    assert!(updates < 1_000, "{updates} updates");
    let frames = loop {
        if let Seen::Beat(counters) = w.next().await
            && counters["items_finished"] == total
        {
            break counters["executor_frames_sent"] + counters["executor_frames_received"];
        }
    };
    assert!(frames < 2_000, "{frames} frames to and from the executor");
    eprintln!("{total} items: {updates} updates, {frames} frames to and from the executor");
    assert_eq!(w.stdout("array").await.len(), 100_000 * 6);
    let items = Some(ItemSet::range(10, 20).into());
    let some = v1::OutputRead { items, ..Default::default() };
    assert_eq!(w.read("array", v1::sandbox_read::What::Output(some)).await.unwrap().len(), 10 * 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executor_that_is_killed_is_named_as_the_cause_and_a_new_one_takes_its_place() {
    let mut w = World::start().await;
    w.launch("spin", SPIN).await;
    assert_eq!(w.update().await.state, TaskState::Running);
    let pids = w.executors();
    assert!(!pids.is_empty());
    for pid in pids {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    let last = w.update().await;
    assert_eq!((last.state, last.reason), (TaskState::Failed, Reason::ExecutorTerminated), "{last:?}");
    assert!(last.message.contains("killed"), "{}", last.message);
    w.launch("hello", HELLO).await;
    assert_eq!(w.update().await.state, TaskState::Running);
    assert_eq!(w.update().await.state, TaskState::Finished);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_comes_back_with_what_it_runs_when_the_connection_breaks() {
    let mut w = World::start().await;
    w.launch("spin", SPIN).await;
    assert_eq!(w.update().await.state, TaskState::Running);
    w.launch("hello", HELLO).await;
    // Neither of its updates is acknowledged.
    while !matches!(w.next().await, Seen::Update(u) if u.state == TaskState::Finished) {}
    w.to.send(Err(Status::unavailable("the master restarts"))).await.unwrap();
    let register = loop {
        if let Seen::Connected(to, register) = w.next().await {
            w.to = to;
            break register;
        }
    };
    let tasks: Vec<_> = register.tasks.iter().map(|t| (t.task.clone().unwrap().task, t.state())).collect();
    assert_eq!(tasks, [("spin".to_owned(), v1::TaskState::Running)]);
    // On a machine that is busy, a preparation says how far it is.
    let states = register.unacknowledged.iter().map(v1::StatusUpdate::state);
    let states: Vec<_> = states.filter(|state| *state != v1::TaskState::Staging).collect();
    assert_eq!(states, [v1::TaskState::Running, v1::TaskState::Finished]);
    w.command(AgentCommand::Kill { task: key("spin"), grace: Some(DurationMs(0)) }).await;
    loop {
        let update = w.update().await;
        if update.key.task == key("spin") && update.state.is_terminal() {
            assert_eq!(update.state, TaskState::Killed);
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_goodbye_and_leaves_nothing_running() {
    let mut w = World::start().await;
    w.launch("spin", SPIN).await;
    assert_eq!(w.update().await.state, TaskState::Running);
    assert!(!w.executors().is_empty());
    let agent = nix::unistd::Pid::from_raw(i32::try_from(w.agent.id()).unwrap());
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGTERM).unwrap();
    while !matches!(w.next().await, Seen::Deregistered) {}
    let status = w.agent.wait().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(w.executors(), [] as [i32; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_what_its_executors_are() {
    let mut w = World::start().await;
    w.launch("spin", SPIN).await;
    // At first there is none, then one that starts, then one that runs a task.
    let reports = loop {
        if let Seen::Executors(reports) = w.next().await
            && reports.executors.iter().any(|e| e.busy_slots == 1 && e.state == "up")
        {
            break reports;
        }
    };
    let [executor] = &reports.executors[..] else { panic!("{reports:?}") };
    assert_eq!((executor.framework.as_str(), executor.slots, executor.memory_limit > 0), ("F1-1", 32, true), "{executor:?}");
    assert!(executor.pid > 0 && executor.uid.is_some(), "{executor:?}");
    assert!(["pooling", "on-demand"].contains(&executor.allocator.as_str()), "{executor:?}");
    assert!(executor.layers.contains_key("pid_namespace"), "{executor:?}");
    assert!(["agent", "executors", "compiler"].iter().all(|part| reports.overhead_memory.contains_key(*part)), "{reports:?}");
    w.command(AgentCommand::Kill { task: key("spin"), grace: Some(DurationMs(0)) }).await;
    loop {
        if let Seen::Executors(reports) = w.next().await
            && reports.executors.iter().all(|e| e.busy_slots == 0)
        {
            return;
        }
    }
}
