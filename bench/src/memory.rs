//! What an idle cluster costs, and what a sleeping task costs: memory and cpu of the processes, as the kernel counts them.

use crate::Effort;
use crate::figures::Figures;
use crate::rpc;
use anyhow::{Context, Result, bail};
use smalti_framework_sdk::{Event, Events, Framework, Handle, Options};
use smalti_tests::{AgentConfig, Cluster, Config};
use smalti_types::{Bytes, DurationMs, Filters, Launch, MilliCpus, Operation, Resources, TaskId, TaskSpec, TaskState};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Bytes of memory that are a process's own, and its part of what it shares.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("reading the memory of {pid}"))?;
    let kib = |key: &str| {
        let line = text.lines().find(|l| l.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok()
    };
    // What several executors share, the code above all, counts once.
    kib("Pss:").map(|k| k * 1024.0).with_context(|| format!("no Pss of {pid}"))
}

/// Seconds of cpu that a process has used.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("reading the cpu time of {pid}"))?;
    let after = text.rsplit_once(')').context("a strange stat")?.1;
    let ticks: f64 = after.split_whitespace().skip(11).take(2).filter_map(|w| w.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}

/// Nanoseconds of cpu that the threads of a process have used, those that have ended apart: finer than [`cpu_seconds`].
pub(crate) fn cpu_nanos(pid: u32) -> Result<u64> {
    let dir = format!("/proc/{pid}/task");
    let threads = std::fs::read_dir(&dir).with_context(|| format!("reading {dir}"))?;
    let times = threads.flatten().filter_map(|t| std::fs::read_to_string(t.path().join("schedstat")).ok());
    Ok(times.filter_map(|t| t.split(' ').next()?.parse::<u64>().ok()).sum())
}

/// The most memory that a process has had, with all that it shares.
pub(crate) fn peak(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("reading the memory of {pid}"))?;
    let kib = text.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|k| k * 1024.0).with_context(|| format!("no VmHWM of {pid}"))
}

/// The executors' workers of a cluster: children of the supervisors whose directories are in it. Supervisors are nobody's children, so that they outlive agents.
pub(crate) fn workers(cluster: &Cluster) -> Vec<u32> {
    let dir = cluster.dir().display().to_string();
    let is_supervisor = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.starts_with("smalti-executor init ") && line.contains(&dir)
    };
    let children = |pid: u32| -> Vec<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
        lists.flat_map(|l| l.split_whitespace().filter_map(|w| w.parse().ok()).collect::<Vec<u32>>()).collect()
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(is_supervisor).flat_map(children).collect()
}

/// An idle cluster: a master, an agent, an executor that has run one task.
pub(crate) fn idle(cluster: &Cluster, effort: Effort, figures: &mut Figures) -> Result<()> {
    let agent = cluster.agents.first().context("no agent")?.pid();
    let master = cluster.master.pid();
    std::thread::sleep(Duration::from_millis(500));
    let executors = workers(cluster);
    let executor = *executors.first().context("no executor")?;
    figures.add("agent_idle_rss_bytes", vec![resident(agent)?]);
    figures.add("executor_idle_rss_bytes", vec![resident(executor)?]);
    figures.add("master_idle_rss_bytes", vec![resident(master)?]);
    let watched = [("agent_idle_cpu_percent", agent), ("master_idle_cpu_percent", master), ("executor_idle_cpu_percent", executor)];
    let before = watched.iter().map(|(_, pid)| cpu_seconds(*pid)).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs_f64(effort.idle_seconds));
    for ((name, pid), before) in watched.into_iter().zip(before) {
        figures.add(name, vec![100.0 * (cpu_seconds(pid)? - before) / start.elapsed().as_secs_f64()]);
    }
    Ok(())
}

/// Thousands of tasks that sleep, all live at once, on an agent of their own that was told to have 200 cpus.
pub(crate) async fn sleepers(effort: Effort, figures: &mut Figures) -> Result<()> {
    let agent = AgentConfig { cpus: "200".into(), mem: "1TiB".into(), ..AgentConfig::default() };
    // The agent says what it has room for, and its executors how they reset memory.
    let env = vec![("RUST_LOG".into(), "warn,smalti_agent=info".into())];
    let cluster = Cluster::start(Config { agents: vec![agent], scheduler: false, env, ..Config::default() })?;
    let log = || cluster.agents.first().map(smalti_tests::Process::log).unwrap_or_default();
    println!(
        "sleeping tasks: {}",
        log().lines().find_map(|l| Some(&l[l.find("room for")?..])).unwrap_or("the agent does not say its room")
    );
    let guest = cluster.dir().join("sleeper.wat");
    std::fs::write(&guest, SLEEPER).context("writing a guest")?;
    let digest = rpc::push(&cluster, &guest.display().to_string())?;
    let spec = rpc::spec(&digest)?;
    let (handle, mut events) = Framework::connect(Options::new(&cluster.address, "sleepers")).await?;
    // The first ones pay for the executors, the rest for themselves.
    let first = effort.sleepers / 20;
    live(&handle, &mut events, &spec, (0, first)).await.with_context(log)?;
    let before = footprint(&cluster)?;
    let start = Instant::now();
    live(&handle, &mut events, &spec, (first, effort.sleepers)).await.with_context(log)?;
    let seconds = start.elapsed().as_secs_f64();
    let after = footprint(&cluster)?;
    let agent = cluster.agents.first().context("no agent")?.pid();
    let (cpu, start) = (cpu_nanos(agent)?, Instant::now());
    tokio::time::sleep(Duration::from_secs_f64(effort.idle_seconds / 2.0)).await;
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of cpu")]
    let agent_cpu = 100.0 * (cpu_nanos(agent)? - cpu) as f64 / 1e9 / start.elapsed().as_secs_f64();
    println!("sleeping tasks: {} live at once in executors with {}", effort.sleepers, ways(&log()));
    #[expect(clippy::cast_precision_loss, reason = "figures")]
    let (more, all, executors) = ((effort.sleepers - first) as f64, effort.sleepers as f64, workers(&cluster).len() as f64);
    figures.add("sleeping_tasks", vec![all]);
    figures.add("sleeping_tasks_executors", vec![executors]);
    figures.add("sleeping_tasks_started_per_s", vec![more / seconds]);
    figures.add("sleeping_tasks_agent_cpu_percent", vec![agent_cpu]);
    figures.add("instance_bytes", vec![(after.1 - before.1) / more]);
    figures.add("agent_bytes_per_task", vec![(after.0 - before.0) / more]);
    handle.teardown().await?;
    Ok(())
}

/// How executors allocate and reset memory, by what the agent logged when they started.
fn ways(log: &str) -> String {
    let word = |line: &str, key: &str| Some(line.split(key).nth(1)?.split(' ').next()?.to_owned());
    let mut ways: BTreeMap<String, usize> = BTreeMap::new();
    for line in log.lines() {
        if let (Some(allocator), Some(reset)) = (word(line, "allocator="), word(line, "reset=")) {
            *ways.entry(format!("allocator {allocator}, reset {reset}")).or_default() += 1;
        }
    }
    ways.into_iter().map(|(way, n)| format!("{way} ({n})")).collect::<Vec<_>>().join(", ")
}

/// Memory of the agent and of all its executors.
fn footprint(cluster: &Cluster) -> Result<(f64, f64)> {
    let agent = cluster.agents.first().context("no agent")?.pid();
    let executors = workers(cluster).into_iter().map(resident).sum::<Result<f64>>()?;
    Ok((resident(agent)?, executors))
}

/// Tasks that are launched and do not run yet.
const AT_ONCE: u64 = 1_000;
/// Nothing on the way to many tasks takes this long: whoever waits longer waits for ever.
const STUCK: Duration = Duration::from_secs(60);

/// Sleeps for an hour.
const SLEEPER: &str = r#"(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 3600000000000))
    (drop (call $poll (i32.const 0) (i32.const 1024) (i32.const 1) (i32.const 2048)))))"#;

/// Launches tasks `from` to `to` and waits until all are running.
async fn live(handle: &Handle, events: &mut Events, spec: &TaskSpec, (from, to): (u64, u64)) -> Result<()> {
    let request = Resources::new(MilliCpus(20), Bytes::mib(16));
    let (mut launched, mut running) = (from, from);
    handle.revive().await?;
    while running < to {
        let event = tokio::time::timeout(STUCK, events.recv()).await;
        let event = event.with_context(|| format!("{running} of {to} tasks run, {launched} were launched, and nothing happens"))?;
        match event.context("the subscription ended")? {
            Event::Offers(offers) => {
                for offer in offers {
                    // An agent prepares 2,048 tasks of a framework at a time, and takes no more.
                    let most = (to - launched).min(AT_ONCE.saturating_sub(launched - running));
                    let n = offer.resources.times(&request, u32::try_from(most).unwrap_or(u32::MAX));
                    let launch = |k| {
                        let task = TaskId::new(format!("s{}", launched + k))?;
                        Ok(Operation::Launch(Launch { task, attempt: 0, resources: request.clone(), spec: spec.clone() }))
                    };
                    let operations = (0..u64::from(n)).map(launch).collect::<Result<Vec<_>>>()?;
                    launched += u64::from(n);
                    handle.accept(vec![offer.id], operations, Filters { refuse: DurationMs(0) }).await?;
                }
            }
            Event::Update(update) => {
                match update.update.state {
                    TaskState::Running => running += 1,
                    state if state.is_terminal() => bail!("{} ended {state}: {}", update.update.key.task, update.update.message),
                    _ => {}
                }
                update.ack.done();
            }
            Event::Error(message) | Event::Refused { message, .. } => bail!("{message}"),
            _ => {}
        }
    }
    handle.suppress().await?;
    Ok(())
}
