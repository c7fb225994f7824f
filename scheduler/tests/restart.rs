//! Lives of the scheduler over one data directory, with a master that the tests play.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake_master;

use fake_master::FakeMaster;
use smalti_proto::v1::jobs_client::JobsClient;
use smalti_proto::v1::{self, map_job, submit_request};
use smalti_types::protocol::{FrameworkEvent, REMOVED_FRAMEWORK};
use smalti_types::{AgentId, ArrayDelta, Digest, FrameworkId, ItemSet, Reason, StatusUpdate, TaskId, TaskKey, TaskState, Time};
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::transport::Channel;

struct Life {
    jobs: JobsClient<Channel>,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
}

/// Says an update of an array part, as an agent would.
async fn part_says(fake: &FakeMaster, task: &str, seq: u64, delta: ArrayDelta) {
    let key = TaskKey { framework: FrameworkId::new("F1-1").unwrap(), task: TaskId::new(task).unwrap(), attempt: 0 };
    let mut update = StatusUpdate::new(key, seq, TaskState::Running, Reason::None, "", Time(1));
    update.array = Some(delta);
    let event = FrameworkEvent::Updates(vec![(AgentId::new("a1").ok(), update)]);
    let events = fake.state.lock().unwrap().events.clone().unwrap();
    events.send(Ok(event.into())).await.unwrap();
}

async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Life {
    async fn begin(master: &str, fake: &FakeMaster, dir: &std::path::Path) -> Self {
        let before = fake.state.lock().unwrap().announced.len();
        let options = fake_master::options(master, dir);
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(smalti_scheduler::run(options, async move {
            let _ = stopped.await;
        }));
        until(|| ended.is_finished() || fake.state.lock().unwrap().announced.len() > before).await;
        let address = fake.state.lock().unwrap().announced[before].clone();
        Self { jobs: JobsClient::new(smalti_proto::client::connect(&address).await.unwrap()), stop, ended }
    }

    async fn end(self) {
        drop(self.jobs);
        self.stop.send(()).unwrap();
        self.ended.await.unwrap().unwrap();
    }

    async fn finished(&mut self, job: &str) -> u64 {
        let mut views = self.jobs.watch(v1::JobRef { job: job.into() }).await.unwrap().into_inner();
        views.message().await.unwrap().unwrap().items_finished
    }
}

fn map(items: u64) -> v1::SubmitRequest {
    let digest = bytes::Bytes::copy_from_slice(Digest::of(b"guest").as_bytes());
    let bundle = Some(v1::BundleRef { digest, uri: Some("file:///guest.wasm".into()) });
    let limits = Some(v1::Limits { output_bytes: 1 << 20, ..Default::default() });
    let spec = Some(v1::TaskSpec { bundle, limits, ..Default::default() });
    let resources = Some(v1::Resources { milli_cpus: 500, mem_bytes: 1 << 20, ..Default::default() });
    let kind = v1::MapJob { spec, resources, items: Some(map_job::Items::Count(items)), ..Default::default() };
    v1::SubmitRequest { name: "many".into(), kind: Some(submit_request::Kind::Map(kind)), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arrays_updates_are_applied_once_however_often_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let (address, fake) = fake_master::start(Some(500), false).await;
    let mut life = Life::begin(&address, &fake, dir.path()).await;
    let job = life.jobs.submit(map(8)).await.unwrap().into_inner().job;
    until(|| !fake.state.lock().unwrap().launched.is_empty()).await;
    let part = fake.state.lock().unwrap().launched[0].clone();
    let came_back = || ArrayDelta { returned: ItemSet::range(0, 1), slots: 1, ..ArrayDelta::default() };
    // The first item comes back, and is handed out again to the same part.
    part_says(&fake, &part, 1, came_back()).await;
    until(|| fake.state.lock().unwrap().acks == [1]).await;
    until(|| fake.state.lock().unwrap().assigned.iter().any(|a| a.contains(0))).await;
    life.end().await;

    fake.state.lock().unwrap().assigned.clear();
    let mut life = Life::begin(&address, &fake, dir.path()).await;
    assert_eq!(fake.state.lock().unwrap().framework_ids, [None, Some("F1-1".into())]);
    until(|| fake.state.lock().unwrap().assigned.iter().any(|a| a.contains(0))).await;
    // The acknowledgement was lost: the same again, and what came since.
    part_says(&fake, &part, 1, came_back()).await;
    let done = ArrayDelta { finished: ItemSet::range(0, 1), slots: 1, ..ArrayDelta::default() };
    part_says(&fake, &part, 2, done).await;
    until(|| fake.state.lock().unwrap().acks == [1, 1, 2]).await;
    assert_eq!(life.finished(&job).await, 1);
    let again = fake.state.lock().unwrap().assigned.iter().filter(|a| a.contains(0)).count();
    assert_eq!(again, 1, "by the restart, and not because it came back a second time");
    life.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_another_one_replaced_stops_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (address, fake) = fake_master::start(None, false).await;
    let life = Life::begin(&address, &fake, dir.path()).await;
    until(|| fake.state.lock().unwrap().calls > 0).await;
    let events = fake.state.lock().unwrap().events.clone().unwrap();
    events.send(Ok(FrameworkEvent::Error("another scheduler took over".into()).into())).await.unwrap();
    let why = format!("{:#}", life.ended.await.unwrap().unwrap_err());
    assert!(why.contains("another scheduler took over") && why.contains("stop the other"), "{why}");
    assert_eq!(fake.state.lock().unwrap().framework_ids.len(), 1, "it does not fight");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_framework_becomes_a_new_one_and_any_other_refusal_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let (address, fake) = fake_master::start(None, false).await;
    let life = Life::begin(&address, &fake, dir.path()).await;
    until(|| fake.state.lock().unwrap().calls > 0).await;
    life.end().await;
    for (reason, next) in [("there are too many frameworks", Some("F1-1".to_owned())), (REMOVED_FRAMEWORK, None)] {
        fake.state.lock().unwrap().framework_ids.clear();
        fake.state.lock().unwrap().refuse = Some(format!("framework F1-1 {reason}"));
        let life = Life::begin(&address, &fake, dir.path()).await;
        until(|| fake.state.lock().unwrap().framework_ids.len() == 2).await;
        assert_eq!(fake.state.lock().unwrap().framework_ids, [Some("F1-1".into()), next]);
        life.end().await;
    }
}
