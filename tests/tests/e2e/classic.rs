//! The four steps of the classic example of two-level scheduling, to the number, with two frameworks written against the
//! public SDK. (Hindman et al. 2011, "Mesos: A Platform for Fine-Grained Resource Sharing in the Data Center", figure 3.)

use crate::Result;
use anyhow::{Context, bail};
use smalti_framework_sdk::{Event, Events, Framework, Handle, Options};
use smalti_tests::{AgentConfig, Cluster, Config, Finished};
use smalti_types::{Bytes, DurationMs, Filters, Launch, Limits, MilliCpus, Offer, Operation, Resources, Role, TaskId, TaskSpec, TaskState};

/// The next offer, whatever else comes before it.
async fn offer(events: &mut Events) -> Result<Offer> {
    loop {
        match events.recv().await.context("the subscription ended")? {
            Event::Offers(mut offers) => return offers.pop().context("an empty batch of offers"),
            Event::Update(update) => update.ack.done(),
            Event::Error(message) => bail!("{message}"),
            _ => {}
        }
    }
}

/// Waits until `n` tasks have said that they run.
async fn running(events: &mut Events, n: usize) -> Result<()> {
    let mut seen = 0;
    while seen < n {
        match events.recv().await.context("the subscription ended")? {
            Event::Update(update) => {
                seen += usize::from(update.update.state == TaskState::Running);
                anyhow::ensure!(!update.update.state.is_terminal(), "{:?}", update.update);
                update.ack.done();
            }
            Event::Error(message) => bail!("{message}"),
            _ => {}
        }
    }
    Ok(())
}

fn task(name: &str, cpus: u64, gib: u64, spec: &TaskSpec) -> Result<Operation> {
    let resources = Resources::new(MilliCpus(cpus * 1000), Bytes::gib(gib));
    Ok(Operation::Launch(Launch { task: TaskId::new(name)?, attempt: 0, resources, spec: spec.clone() }))
}

async fn connect(cluster: &Cluster, name: &str) -> Result<(Handle, Events)> {
    Ok(Framework::connect(Options::new(&cluster.address, name)).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_framework_1_leaves_is_offered_to_framework_2() -> Result {
    let agent = AgentConfig { cpus: "4".into(), mem: "4GiB".into(), ..AgentConfig::default() };
    let cluster = Cluster::start(Config { agents: vec![agent], scheduler: false, ..Config::default() })?;
    let bundle = smalti_framework_sdk::push_bundle(&cluster.address, &Role::default(), cluster.paths.guest("misbehave")?).await?;
    let spec = TaskSpec {
        args: vec!["sleep".into(), "3600000".into()],
        limits: Limits { grace: DurationMs(0), ..Limits::default() },
        ..TaskSpec::new(bundle)
    };

    // 1 and 2: the agent reports 4 cpus and 4 GB; the master offers all of it to framework 1.
    let (first, mut first_events) = connect(&cluster, "framework-1").await?;
    let whole = offer(&mut first_events).await?;
    assert_eq!((whole.resources.cpus, whole.resources.mem), (MilliCpus(4000), Bytes::gib(4)));

    // 3: framework 1 answers with two tasks: (2 cpus, 1 GB) and (1 cpu, 2 GB).
    let (second, mut second_events) = connect(&cluster, "framework-2").await?;
    let tasks = vec![task("t1", 2, 1, &spec)?, task("t2", 1, 2, &spec)?];
    first.accept(vec![whole.id], tasks, Filters { refuse: DurationMs(60_000) }).await?;
    running(&mut first_events, 2).await?;

    // 4: what is left, 1 cpu and 1 GB, is offered to framework 2.
    let rest = offer(&mut second_events).await?;
    assert_eq!((rest.resources.cpus, rest.resources.mem), (MilliCpus(1000), Bytes::gib(1)));
    second.accept(vec![rest.id], vec![task("t3", 1, 1, &spec)?], Filters::default()).await?;
    running(&mut second_events, 1).await?;

    let agents = cluster.json(&["agents"])?;
    assert_eq!((agents[0]["used"]["cpus"].as_f64(), agents[0]["free"]["cpus"].as_f64()), (Some(4.0), Some(0.0)));
    first.teardown().await?;
    second.teardown().await?;
    Ok(())
}

#[test]
fn the_example_scheduler_is_short_and_works() -> Result {
    let source = std::fs::read_to_string(smalti_tests::workspace_root().join("framework-sdk/examples/scheduler.rs"))?;
    assert!(source.lines().count() <= 100, "{} lines", source.lines().count());
    let cluster = Cluster::start(Config { scheduler: false, ..Config::default() })?;
    let example = cluster.paths.smalti().with_file_name("examples").join("scheduler");
    let mut command = std::process::Command::new(&example);
    command.arg(&cluster.address).arg(cluster.paths.guest("hello")?).args(["50", "one", "two"]);
    let done = Finished::of(command, b"", std::time::Duration::from_secs(60))
        .with_context(|| format!("{}: `cargo build --release -p smalti-framework-sdk --example scheduler` builds it", example.display()))?;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.contains("50 tasks ended, 0 of them not well"), "{}", done.stdout);
    Ok(())
}
