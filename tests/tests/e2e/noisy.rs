//! One tenant's flood does not become another's wait, and is on nobody else's account.

use crate::{Result, eventually, guest, is_root, one_agent};
use anyhow::Context;
use smalti_framework_sdk::{Event, Framework, Options, push_bytes};
use smalti_types::{Bytes, Filters, Launch, MilliCpus, Operation, Resources, Role, TaskId, TaskSpec};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bundles of the flood.
const FLOOD: usize = 300;

/// Programs of which no two have the same digest, with some work for a compiler.
fn distinct(n: usize) -> Vec<u8> {
    let functions: String = (0..100).map(|f| format!("(func (param i64) (result i64) local.get 0 i64.const {f} i64.mul)")).collect();
    format!("(module (memory (export \"memory\") 1) (func (export \"_start\")) (global i64 i64.const {n}) {functions})").into()
}

/// Submits all of them at once, in a role of its own, and counts those that ended.
async fn flood(master: String, submitted: Arc<AtomicUsize>, ended: Arc<AtomicUsize>) -> Result {
    let mut options = Options::new(&master, "flood");
    options.info.role = Role::new("flood")?;
    let mut bundles = Vec::new();
    for n in 0..FLOOD {
        bundles.push(push_bytes(&master, &options.info.role, &format!("{n}.wat"), distinct(n)).await?);
    }
    let (handle, mut events) = Framework::connect(options).await?;
    let each = Resources::new(MilliCpus(10), Bytes::mib(2));
    while let Some(event) = events.recv().await {
        match event {
            Event::Offers(offers) => {
                for offer in offers {
                    let n = offer.resources.times(&each, u32::try_from(bundles.len())?) as usize;
                    let operations = bundles.drain(..n.min(bundles.len())).map(|bundle| {
                        let task = TaskId::new(format!("t{}", submitted.fetch_add(1, Ordering::Relaxed)))?;
                        Ok(Operation::Launch(Launch { task, attempt: 0, resources: each.clone(), spec: TaskSpec::new(bundle) }))
                    });
                    let operations = operations.collect::<Result<Vec<_>>>()?;
                    handle.accept(vec![offer.id], operations, Filters::default()).await?;
                }
            }
            Event::Update(update) => {
                if update.update.state.is_terminal() {
                    ended.fetch_add(1, Ordering::Relaxed);
                }
                update.ack.done();
            }
            Event::Error(message) => anyhow::bail!("{message}"),
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn a_flood_of_bundles_does_not_hold_up_anothers_and_runs_on_the_agents_own_account() -> Result {
    // Three cpus for the flood, and one for who comes later.
    let c = one_agent("4")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (submitted, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let flood = runtime.spawn(flood(c.address.clone(), submitted.clone(), ended.clone()));
    eventually("the flood is under way", || {
        anyhow::ensure!(!flood.is_finished(), "the flood ended by itself");
        Ok(submitted.load(Ordering::Relaxed) == FLOOD && ended.load(Ordering::Relaxed) > 0)
    })?;
    let done = c.smalti(&["run", "--cpus", "0.1", &guest(&c, "hello")?])?;
    assert_eq!(done.code, 0, "{}", done.stderr);
    let first = ended.load(Ordering::Relaxed);
    assert!(first < FLOOD, "the single bundle came after all {FLOOD} of the flood");
    if is_root() {
        work_is_apart(&c)?;
    } else {
        eprintln!("NOT TESTED: whose account compilers are on needs cgroups, and this is not root");
    }
    flood.abort();
    Ok(())
}

/// The compilers' group lies beside the executors' and has a small part of their weight, and it is where the work was done.
fn work_is_apart(c: &smalti_tests::Cluster) -> Result {
    let id = c.json(&["agents"])?[0]["id"].as_str().context("an id")?.to_owned();
    let read = |suffix: &str, file: &str| -> Result<u64> {
        let mut found = crate::executors::groups(&id)?;
        found.retain(|dir| dir.file_name().is_some_and(|n| *n == *format!("smalti-{id}{suffix}")) && dir.join(file).exists());
        let path = found.first().with_context(|| format!("no group smalti-{id}{suffix} with {file}"))?.join(file);
        std::fs::read_to_string(&path)?.trim().parse().with_context(|| path.display().to_string())
    };
    let weight = if read("", "cpu.shares").is_ok() { "cpu.shares" } else { "cpu.weight" };
    let (tasks, work) = (read("", weight)?, read("-work", weight)?);
    assert!(tasks >= 10 * work, "{tasks} for tasks, {work} for compilers");
    if weight == "cpu.shares" {
        assert!(read("-work", "cpuacct.usage")? > 0);
    }
    Ok(())
}

#[test]
fn lent_cpu_time_is_used_and_the_flag_wants_all_processors() -> Result {
    let cores = std::thread::available_parallelism()?.get();
    let agent = smalti_tests::AgentConfig { cpus: "0.5".into(), flags: vec!["--lend-cpu".into()], ..Default::default() };
    let refused = smalti_tests::Cluster::start(smalti_tests::Config { agents: vec![agent.clone()], ..Default::default() });
    let message = format!("{:#}", refused.err().context("half a core cannot be lent")?);
    anyhow::ensure!(message.contains("--lend-cpu works by weights"), "{message}");
    if !is_root() {
        eprintln!("NOT TESTED: lending needs cgroups, and this is not root");
        return Ok(());
    }
    let agent = smalti_tests::AgentConfig { cpus: cores.to_string(), ..agent };
    let c = smalti_tests::Cluster::start(smalti_tests::Config { agents: vec![agent], ..Default::default() })?;
    let id = c.json(&["agents"])?[0]["id"].as_str().context("an id")?.to_owned();
    let job = c.ok(&["submit", "--cpus", "0.1", &guest(&c, "misbehave")?, "--", "loop"])?;
    // In a hundred periods a quota of 0.1 would have thrown it out a hundred times.
    eventually("it has used ten seconds' worth of its own share", || {
        let used = crate::executors::groups(&id)?.into_iter().filter(|d| d.ends_with("slot-0"));
        let used = used.filter_map(|d| std::fs::read_to_string(d.join("cpuacct.usage")).or_else(|_| usage_usec(&d)).ok());
        Ok(used.filter_map(|t| t.trim().parse::<u64>().ok()).any(|ns| ns > 1_000_000_000))
    })?;
    for dir in crate::executors::groups(&id)?.into_iter().filter(|d| d.ends_with("slot-0")) {
        let stat = std::fs::read_to_string(dir.join("cpu.stat")).unwrap_or_default();
        assert!(!stat.lines().any(|l| l.strip_prefix("nr_throttled ").is_some_and(|n| n.trim() != "0")), "{}: {stat}", dir.display());
    }
    c.ok(&["kill", "--grace", "0s", job.trim()])?;
    Ok(())
}

/// v2: nanoseconds as text, like v1's file.
fn usage_usec(dir: &std::path::Path) -> std::io::Result<String> {
    let stat = std::fs::read_to_string(dir.join("cpu.stat"))?;
    let us = stat.lines().find_map(|l| l.strip_prefix("usage_usec ")?.trim().parse::<u64>().ok()).unwrap_or_default();
    Ok((us * 1000).to_string())
}
