//! The scheduler as clients see it, with a master that the tests play.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake_master;

use fake_master::FakeMaster;
use smalti_proto::v1::jobs_client::JobsClient;
use smalti_proto::v1::{self, map_job, read_reply, submit_request};
use smalti_scheduler::Options;
use smalti_types::Digest;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::Channel;

struct Running {
    jobs: JobsClient<Channel>,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Waits until it has subscribed: by then it listens.
    async fn start(master: &str, fake: &FakeMaster, dir: &std::path::Path) -> Self {
        let before = fake.state.lock().unwrap().announced.len();
        let options = fake_master::options(master, dir);
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(smalti_scheduler::run(options, async move {
            let _ = stopped.await;
        }));
        let address = loop {
            if let Some(address) = fake.state.lock().unwrap().announced.get(before) {
                break address.clone();
            }
            assert!(!ended.is_finished(), "{:?}", ended.await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let jobs = JobsClient::new(smalti_proto::client::connect(&address).await.unwrap());
        Self { jobs, stop, ended }
    }

    async fn stop(self) {
        drop(self.jobs);
        self.stop.send(()).unwrap();
        self.ended.await.unwrap().unwrap();
    }

    async fn submit(&mut self, request: v1::SubmitRequest) -> String {
        self.jobs.submit(request).await.unwrap().into_inner().job
    }

    async fn end(&mut self, job: &str) -> v1::JobView {
        let mut views = self.jobs.watch(v1::JobRef { job: job.into() }).await.unwrap().into_inner();
        let mut last = None;
        while let Some(view) = views.next().await {
            last = Some(view.unwrap());
        }
        last.unwrap()
    }

    async fn output(&mut self, job: &str, follow: bool) -> Result<String, tonic::Status> {
        let request = v1::OutputRequest { job_or_task: job.into(), stream: v1::OutputStream::Stdout.into(), follow, ..Default::default() };
        let mut replies = self.jobs.output(request).await?.into_inner();
        let mut text = Vec::new();
        while let Some(reply) = replies.next().await {
            if let Some(read_reply::Message::Chunk(chunk)) = reply?.message {
                text.extend_from_slice(&chunk.data);
            }
        }
        Ok(String::from_utf8(text).unwrap())
    }
}

fn spec() -> Option<v1::TaskSpec> {
    // A bundle with a URI: the cluster's store is not asked.
    let digest = bytes::Bytes::copy_from_slice(Digest::of(b"guest").as_bytes());
    let bundle = v1::BundleRef { digest, uri: Some("file:///guest.wasm".into()) };
    Some(v1::TaskSpec {
        bundle: Some(bundle),
        limits: Some(v1::Limits { output_bytes: 1 << 20, ..Default::default() }),
        ..Default::default()
    })
}

fn resources(milli_cpus: u64) -> Option<v1::Resources> {
    Some(v1::Resources { milli_cpus, mem_bytes: 1 << 20, ..Default::default() })
}

fn single(milli: u64, request_id: &str) -> v1::SubmitRequest {
    let kind = v1::SingleJob { spec: spec(), resources: resources(milli), ..Default::default() };
    let kind = Some(submit_request::Kind::Single(kind));
    v1::SubmitRequest { name: "one".into(), kind, request_id: request_id.into(), ..Default::default() }
}

fn map(items: map_job::Items, split_bytes: Option<u64>, reduce: bool) -> v1::SubmitRequest {
    let reduce = reduce.then(|| v1::ReduceStep { spec: spec(), resources: resources(100) });
    let kind = v1::MapJob { spec: spec(), resources: resources(500), items: Some(items), split_bytes, reduce, ..Default::default() };
    v1::SubmitRequest { name: "many".into(), kind: Some(submit_request::Kind::Map(kind)), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_to_its_end_and_its_output_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (address, fake) = fake_master::start(Some(4000), true).await;
    let mut scheduler = Running::start(&address, &fake, dir.path()).await;
    let job = scheduler.submit(single(500, "r1")).await;
    assert_eq!(scheduler.submit(single(500, "r1")).await, job, "the same request is the same job");
    let end = scheduler.end(&job).await;
    assert_eq!((end.state.as_str(), end.exit_code, end.kind.as_str()), ("FINISHED", Some(0), "run"));
    assert_eq!(scheduler.output(&job, true).await.unwrap(), format!("{job}.t\n"));
    let tasks = v1::ListTasksRequest { all: true, ..Default::default() };
    let tasks = scheduler.jobs.list_tasks(tasks).await.unwrap().into_inner().tasks;
    assert_eq!((tasks.len(), tasks[0].task.as_str(), tasks[0].agent.as_str()), (1, format!("{job}.t").as_str(), "a1"));
    while fake.state.lock().unwrap().acknowledged < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scheduler.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_maps_output_is_in_item_order_and_a_reduces_is_the_jobs() {
    let dir = tempfile::tempdir().unwrap();
    let (address, fake) = fake_master::start(Some(4000), true).await;
    let mut scheduler = Running::start(&address, &fake, dir.path()).await;
    let job = scheduler.submit(map(map_job::Items::Count(50), None, false)).await;
    let expected: String = (0..50).map(|i| format!("{i}\n")).collect();
    assert_eq!(scheduler.output(&job, true).await.unwrap(), expected);
    let end = scheduler.end(&job).await;
    assert_eq!((end.state.as_str(), end.items_finished, end.items_by_agent["a1"]), ("FINISHED", 50, 50));
    let items = v1::ListTasksRequest { job_or_task: job.clone(), items: true, limit: 30, ..Default::default() };
    let page = scheduler.jobs.list_tasks(items.clone()).await.unwrap().into_inner();
    assert_eq!((page.tasks.len(), page.next_page.as_str()), (30, "30"));
    let page = scheduler.jobs.list_tasks(v1::ListTasksRequest { page: page.next_page, ..items }).await.unwrap().into_inner();
    assert_eq!((page.tasks.len(), page.tasks[19].item, page.next_page.as_str()), (20, Some(49), ""));

    let job = scheduler.submit(map(map_job::Items::Count(7), None, true)).await;
    assert_eq!(scheduler.output(&job, true).await.unwrap(), format!("{job}.r0\n"));
    scheduler.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_are_cut_at_line_ends_and_empty_ones_give_no_item() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = dir.path().join("inputs");
    std::fs::create_dir(&inputs).unwrap();
    std::fs::write(inputs.join("a"), "one\ntwo\nthree\nfour\n").unwrap();
    std::fs::write(inputs.join("b"), "").unwrap();
    std::fs::write(inputs.join("c"), "five\nsix").unwrap();
    let (address, fake) = fake_master::start(Some(4000), true).await;
    let mut scheduler = Running::start(&address, &fake, &dir.path().join("data")).await;
    let list = |uri: String| map_job::Items::Inputs(v1::InputList { inputs: vec![v1::Input { uri: Some(uri), ..Default::default() }] });
    let uri = format!("file://{}", inputs.display());
    let job = scheduler.submit(map(list(uri.clone()), Some(8), false)).await;
    assert_eq!(scheduler.end(&job).await.items_total, 3, "a: one two / three four, c");
    let job = scheduler.submit(map(list(uri.clone()), None, false)).await;
    assert_eq!(scheduler.end(&job).await.items_total, 2);
    let missing = scheduler.jobs.submit(map(list(format!("{uri}/none")), None, false)).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(missing.message().contains("/none"), "{}", missing.message());
    scheduler.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (address, fake) = fake_master::start(Some(4000), true).await;
    let mut scheduler = Running::start(&address, &fake, dir.path()).await;
    let too_much = scheduler.jobs.submit(single(5000, "")).await.unwrap_err();
    assert_eq!(too_much.code(), Code::FailedPrecondition);
    assert!(too_much.message().contains("a1 (host): cpus: 5 wanted, 4 there"), "{}", too_much.message());
    for (milli, why) in [(0, "cpus must be more than zero"), (5, "below the smallest request")] {
        let refused = scheduler.jobs.submit(single(milli, "")).await.unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains(why), "{refused}");
    }
    for name in ["j77-0000", "nonsense", "j1-0000.x"] {
        let refused = scheduler.jobs.watch(v1::JobRef { job: name.into() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
    }
    scheduler.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_outlive_the_scheduler_and_can_be_killed_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let (address, fake) = fake_master::start(None, false).await;
    let mut scheduler = Running::start(&address, &fake, dir.path()).await;
    // Its first call shows that it knows its id.
    while fake.state.lock().unwrap().calls == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let waiting = scheduler.submit(single(500, "w")).await;
    let text = scheduler.jobs.explain(v1::ExplainRequest { job_or_task: waiting.clone() }).await.unwrap().into_inner().text;
    assert!(text.contains("no agents are registered"), "{text}");
    scheduler.stop().await;

    fake.state.lock().unwrap().agent = Some(4000);
    let mut scheduler = Running::start(&address, &fake, dir.path()).await;
    assert_eq!(fake.state.lock().unwrap().framework_ids, [None, Some("F1-1".into())], "it is the same framework");
    while fake.state.lock().unwrap().launched.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(fake.state.lock().unwrap().launched, [format!("{waiting}.t")]);
    assert_ne!(scheduler.submit(single(500, "x")).await, waiting, "numbers are not given twice");
    scheduler.jobs.kill(v1::KillRequest { job_or_task: waiting.clone(), grace_ms: None }).await.unwrap();
    let end = scheduler.end(&waiting).await;
    assert_eq!((end.state.as_str(), end.exit_code), ("KILLED", Some(137)));
    let all = scheduler.jobs.list_jobs(v1::ListJobsRequest { all: true, limit: 0 }).await.unwrap().into_inner().jobs;
    assert_eq!(all.len(), 2);
    scheduler.stop().await;
}

#[tokio::test]
async fn addresses_beyond_loopback_and_unusable_directories_are_refused() {
    let refuse = async |options: Options| smalti_scheduler::run(options, std::future::pending()).await.unwrap_err().to_string();
    let beyond = refuse(Options { listen: "0.0.0.0:0".parse().unwrap(), ..Options::default() }).await;
    assert!(beyond.contains("refusing to listen on 0.0.0.0:0"), "{beyond}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let unusable = refuse(Options { data_dir: file.path().join("x"), ..Options::default() }).await;
    assert!(unusable.contains("cannot use the data directory"), "{unusable}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let busy = refuse(Options { listen: taken.local_addr().unwrap(), data_dir: dir.path().into(), ..Options::default() }).await;
    assert!(busy.contains("cannot listen on"), "{busy}");
}
