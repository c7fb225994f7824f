//! A master with more and more agents, simulated ones that speak the real protocol (see `swarm`).

use super::{Effort, float, median};
use crate::growth::Series;
use crate::{figures::Figures, memory};
use anyhow::{Context, Result, bail};
use smalti_bench::swarm::{Counts, Options, Swarm};
use smalti_framework_sdk::{Event, Events, Framework, Handle, Options as SdkOptions};
use smalti_tests::{Cluster, Config};
use smalti_types::{BundleRef, Bytes, Digest, DurationMs, Filters, Launch, MilliCpus, Operation, Resources, TaskId, TaskSpec, TaskState};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Nothing here takes as long, unless something is stuck.
const STUCK: Duration = Duration::from_secs(120);
/// Longer than any benchmark.
const LONG_TASK: Duration = Duration::from_secs(3_600);
/// What has come in by then has been dealt with.
const SETTLE: Duration = Duration::from_secs(1);

/// A master of its own and agents that are registered with it.
struct Crowd {
    cluster: Cluster,
    swarm: Swarm,
    /// The master before the first agent.
    empty: f64,
    registration: Duration,
}

impl Crowd {
    async fn gather(agents: u64) -> Result<Self> {
        smalti_bench::files::allow(agents)?;
        let env = vec![("RUST_LOG".into(), "warn".into())];
        let cluster = Cluster::start(Config { agents: Vec::new(), scheduler: false, env, ..Config::default() })?;
        let empty = memory::resident(cluster.master.pid())?;
        let start = Instant::now();
        let mut swarm = Swarm::start(&Options {
            master: cluster.address.clone(),
            agents,
            prefix: "swarm".into(),
            total: Resources::new(MilliCpus(64_000), Bytes::gib(64)),
            task_time: LONG_TASK,
        })?;
        swarm.registered(STUCK).await.with_context(|| cluster.logs())?;
        let registration = start.elapsed();
        tokio::time::sleep(SETTLE).await;
        Ok(Self { cluster, swarm, empty, registration })
    }

    fn master_bytes(&self) -> Result<f64> {
        memory::resident(self.cluster.master.pid())
    }
}

/// The master's memory for one more agent and one more live task, beside that for a connection that has said nothing but one call.
pub(crate) async fn footprint(agents: u64, tasks: u64, figures: &mut Figures) -> Result<()> {
    let crowd = Crowd::gather(agents).await?;
    let with_agents = crowd.master_bytes()?;
    let (handle, mut events) = Framework::connect(SdkOptions::new(&crowd.cluster.address, "footprint")).await?;
    live(&handle, &mut events, tasks).await.with_context(|| crowd.swarm.counts.to_string())?;
    tokio::time::sleep(SETTLE).await;
    let with_tasks = crowd.master_bytes()?;
    figures.add("master_bytes_per_agent", vec![(with_agents - crowd.empty) / float(agents)]);
    figures.add("master_bytes_per_task", vec![(with_tasks - with_agents) / float(tasks)]);
    handle.teardown().await?;
    drop((handle, events));
    drop(crowd);
    figures.add("master_bytes_per_connection", vec![connections(agents).await?]);
    Ok(())
}

/// What a connection costs a master by itself.
async fn connections(n: u64) -> Result<f64> {
    let env = vec![("RUST_LOG".into(), "warn".into())];
    let cluster = Cluster::start(Config { agents: Vec::new(), scheduler: false, env, ..Config::default() })?;
    let before = memory::resident(cluster.master.pid())?;
    let mut open = Vec::new();
    for _ in 0..n {
        let channel = smalti_proto::client::connect(&cluster.address).await?;
        let mut client = smalti_proto::v1::operator_service_client::OperatorServiceClient::new(channel);
        client.cluster(smalti_proto::v1::Empty {}).await?;
        open.push(client);
    }
    let after = memory::resident(cluster.master.pid())?;
    drop(open);
    Ok((after - before) / float(n))
}

pub(super) async fn measure(effort: &Effort) -> Result<Vec<Series>> {
    let (mut registration, mut offers, mut bytes, mut beats) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for &agents in effort.agents {
        let crowd = Crowd::gather(agents).await?;
        registration.push((float(agents), crowd.registration.as_secs_f64() * 1e3));
        bytes.push((float(agents), crowd.master_bytes()? - crowd.empty));
        beats.push((float(agents), watch(&crowd, effort.watch_seconds).await?));
        let mut samples = Vec::new();
        for n in 0..effort.repetitions {
            samples.push(all_offers(&crowd.cluster, n, agents).await?);
        }
        offers.push((float(agents), median(samples)));
        println!("{agents} agents: {}", crowd.swarm.counts);
        crowd.swarm.leave().await;
    }
    Ok(vec![
        Series::new("registration_ms_by_agents", "agents", "ms", registration),
        Series::new("all_offers_ms_by_agents", "agents", "ms", offers),
        Series::new("master_bytes_by_agents", "agents", "bytes", bytes),
        Series::new("master_cpu_us_per_heartbeat_by_agents", "agents", "µs", beats),
    ])
}

/// Cpu time of the master for each heartbeat that it gets, all that it does meanwhile included.
async fn watch(crowd: &Crowd, seconds: f64) -> Result<f64> {
    let pid = crowd.cluster.master.pid();
    let (cpu, beats) = (memory::cpu_nanos(pid)?, Counts::get(&crowd.swarm.counts.beats));
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let more = Counts::get(&crowd.swarm.counts.beats) - beats;
    Ok(float(memory::cpu_nanos(pid)? - cpu) / 1e3 / float(more.max(1)))
}

/// From a subscription to the last agent's offer, in milliseconds.
async fn all_offers(cluster: &Cluster, n: usize, agents: u64) -> Result<f64> {
    let start = Instant::now();
    let (handle, mut events) = Framework::connect(SdkOptions::new(&cluster.address, format!("offers-{n}"))).await?;
    let mut seen = BTreeSet::new();
    while (seen.len() as u64) < agents {
        let event = tokio::time::timeout(STUCK, events.recv()).await;
        match event.with_context(|| format!("{} of {agents} agents were offered", seen.len()))?.context("the subscription ended")? {
            Event::Offers(offers) => seen.extend(offers.into_iter().map(|o| o.agent)),
            Event::Error(message) | Event::Refused { message, .. } => bail!("{message}"),
            _ => {}
        }
    }
    let took = start.elapsed();
    handle.teardown().await?;
    Ok(took.as_secs_f64() * 1e3)
}

/// Launches this many tasks, as evenly as offers come, and waits until all run and that is acknowledged.
async fn live(handle: &Handle, events: &mut Events, tasks: u64) -> Result<()> {
    let request = Resources::new(MilliCpus(100), Bytes::mib(16));
    let spec = TaskSpec::new(BundleRef { digest: Digest::of(b"nothing is run"), uri: None });
    let (mut launched, mut running) = (0, 0);
    while running < tasks {
        let event = tokio::time::timeout(STUCK, events.recv()).await;
        match event.with_context(|| format!("{running} of {tasks} tasks run"))?.context("the subscription ended")? {
            Event::Offers(offers) => {
                for offer in offers {
                    let n = u64::from(offer.resources.times(&request, 100)).min(tasks - launched);
                    let launch = |k| {
                        let task = TaskId::new(format!("t{}", launched + k))?;
                        Ok(Operation::Launch(Launch { task, attempt: 0, resources: request.clone(), spec: spec.clone() }))
                    };
                    let operations = (0..n).map(launch).collect::<Result<Vec<_>>>()?;
                    launched += n;
                    handle.accept(vec![offer.id], operations, Filters { refuse: DurationMs(0) }).await?;
                }
                if launched == tasks {
                    handle.suppress().await?;
                }
            }
            Event::Update(update) => {
                let state = update.update.state;
                running += u64::from(state == TaskState::Running);
                if state.is_terminal() {
                    bail!("{} ended {state}: {}", update.update.key.task, update.update.message);
                }
                update.ack.done();
            }
            Event::Error(message) | Event::Refused { message, .. } => bail!("{message}"),
            _ => {}
        }
    }
    Ok(())
}
