//! Simulated agents and a real master: they register, run what is launched, come back when the master was killed, and leave.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use smalti_bench::swarm::{Counts, Options, Swarm};
use smalti_framework_sdk::{Event, Framework, Options as SdkOptions};
use smalti_tests::{Cluster, Config};
use smalti_types::{BundleRef, Bytes, Digest, DurationMs, Filters, Launch, MilliCpus, Operation, Resources, TaskId, TaskSpec, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const AGENTS: u64 = 50;
const TASKS: usize = 300;
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs [`TASKS`] tasks; gives the states of each, in order, and the agents that had some.
async fn run_tasks(address: &str) -> (BTreeMap<TaskId, Vec<TaskState>>, BTreeSet<String>) {
    let (handle, mut events) = Framework::connect(SdkOptions::new(address, "test")).await.unwrap();
    let request = Resources::new(MilliCpus(500), Bytes::mib(16));
    let spec = TaskSpec::new(BundleRef { digest: Digest::of(b"nothing is run"), uri: None });
    let (mut launched, mut states, mut agents) = (0, BTreeMap::<TaskId, Vec<TaskState>>::new(), BTreeSet::new());
    while states.values().filter(|s| s.last().is_some_and(|s| s.is_terminal())).count() < TASKS {
        match tokio::time::timeout(PATIENCE, events.recv()).await.expect("events come").expect("the subscription stands") {
            Event::Offers(offers) => {
                for offer in offers {
                    let n = (TASKS - launched).min(4);
                    let task = |k| TaskId::new(format!("t{}", launched + k)).unwrap();
                    let launch =
                        |k| Operation::Launch(Launch { task: task(k), attempt: 0, resources: request.clone(), spec: spec.clone() });
                    let operations: Vec<Operation> = (0..n).map(launch).collect();
                    if n > 0 {
                        agents.insert(offer.agent.to_string());
                    }
                    launched += n;
                    handle.accept(vec![offer.id], operations, Filters { refuse: DurationMs(0) }).await.unwrap();
                }
            }
            Event::Update(update) => {
                states.entry(update.update.key.task.task.clone()).or_default().push(update.update.state);
                update.ack.done();
            }
            Event::Error(message) | Event::Refused { message, .. } => panic!("{message}"),
            _ => {}
        }
    }
    handle.teardown().await.unwrap();
    (states, agents)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_runs_tasks_comes_back_after_its_master_died_and_leaves() {
    let mut cluster = Cluster::start(Config { agents: Vec::new(), scheduler: false, ..Config::default() }).unwrap();
    let options = Options {
        master: cluster.address.clone(),
        agents: AGENTS,
        prefix: "s".into(),
        total: Resources::new(MilliCpus(2_000), Bytes::gib(1)),
        task_time: Duration::from_millis(1),
    };
    let mut swarm = Swarm::start(&options).unwrap();
    swarm.registered(PATIENCE).await.unwrap();
    let (states, agents) = run_tasks(&cluster.address).await;
    assert!(states.values().all(|s| *s == [TaskState::Running, TaskState::Finished]), "{states:?}");
    assert!(agents.len() > 10, "{agents:?}");
    assert_eq!((Counts::get(&swarm.counts.launched), Counts::get(&swarm.counts.ended)), (TASKS as u64, TASKS as u64));

    tokio::task::block_in_place(|| cluster.crash_master()).unwrap();
    let back = async {
        while Counts::get(&swarm.counts.reconnects) < AGENTS || Counts::get(&swarm.counts.registered) < AGENTS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.expect("all come back");
    swarm.leave().await;
    let left = tokio::task::block_in_place(|| cluster.json(&["agents"])).unwrap();
    assert_eq!(left.as_array().map(Vec::len), Some(0), "{left}");
}

#[tokio::test]
async fn a_master_that_is_no_address_is_said_to_be_none() {
    let total = Resources::new(MilliCpus(1_000), Bytes::gib(1));
    let options = Options { master: "nowhere".into(), agents: 2, prefix: "s".into(), total, task_time: Duration::ZERO };
    let error = Swarm::start(&options).unwrap().registered(PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("`nowhere` is not the address of a master"), "{error}");
}

#[test]
fn more_agents_than_open_files_are_refused_with_what_to_do() {
    let error = smalti_bench::files::allow(u64::MAX).unwrap_err().to_string();
    assert!(error.contains("open files") && error.contains("LimitNOFILE"), "{error}");
}
