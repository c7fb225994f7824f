//! Limits under attack: processor shares are exact whatever the guest does, and all slots attacked at once by the greediest
//! guests never bring their executor to its own memory limit.

use crate::executors::{executor_pids, groups};
use crate::hostile::{bundle_of, with_directory};
use crate::{Result, eventually, is_root, one_agent};
use anyhow::{Context, ensure};
use smalti_tests::{Cluster, patience};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What each guest asks for, in cores.
const SHARE: f64 = 0.25;
/// How far from it a guest may be.
const TOLERANCE: f64 = 0.1;
/// With less idle time than this part of the machine, a guest may get less than its share: nobody can say why.
const IDLE_ENOUGH: f64 = 0.1;

/// Jobs of guests with these flags, all submitted before any is waited for.
fn submit_all(c: &Cluster, flags: &[&str], guests: &[(&str, bool)]) -> Result<Vec<String>> {
    guests
        .iter()
        .map(|(name, directory)| {
            let path = if *directory { with_directory(c, name)? } else { bundle_of(c, name)? };
            let job = c.ok(&[&["submit"], flags, &[&*path.display().to_string()]].concat())?;
            Ok(job.trim().to_owned())
        })
        .collect()
}

fn task(c: &Cluster, job: &str) -> Result<serde_json::Value> {
    let tasks = c.json(&["ps", "--all"])?;
    tasks.as_array().and_then(|t| t.iter().find(|t| t["job_id"] == job)).cloned().with_context(|| format!("{job} in {tasks}"))
}

/// (idle, all) time of the machine since it started, in ticks.
fn machine_time() -> Result<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let numbers: Vec<f64> = stat.lines().next().unwrap_or("").split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    Ok((numbers.get(3).copied().unwrap_or(0.0), numbers.iter().take(8).sum()))
}

#[test]
fn a_quarter_of_a_core_is_a_quarter_of_a_core_whatever_a_guest_does() -> Result {
    if !is_root() {
        eprintln!("NOT TESTED: cpu limits need cgroups, and this is not root");
        return Ok(());
    }
    let c = one_agent("2")?;
    // Spins; spins in host calls; opens, reads and lists files on the threads beside its own; sleeps a microsecond at a time.
    let guests =
        [("infinite-loop", false), ("random-flood", false), ("read-large", true), ("readdir-tiny-buffers", true), ("poll-storm", false)];
    let before = machine_time()?;
    let jobs = submit_all(&c, &["--cpus", "0.25", "--timeout", "5s"], &guests)?;
    for job in &jobs {
        ensure!(c.smalti(&["wait", job])?.code == 124, "{job} ends by its time limit");
    }
    let after = machine_time()?;
    let idle = (after.0 - before.0) / (after.1 - before.1).max(1.0);
    for ((name, _), job) in guests.iter().zip(&jobs) {
        let usage = task(&c, job)?["usage"].clone();
        let share = usage["cpu_us"].as_f64().unwrap_or(0.0) / usage["wall_us"].as_f64().unwrap_or(1.0);
        eprintln!("{name}: {share:.3} of a core; the machine was idle for {idle:.2}");
        ensure!(share <= SHARE * (1.0 + TOLERANCE), "{name} used {share:.3} of a core");
        let spins = *name != "poll-storm";
        if idle >= IDLE_ENOUGH {
            ensure!(!spins || share >= SHARE * (1.0 - TOLERANCE), "{name} got only {share:.3} of a core");
        } else {
            eprintln!("NOT TESTED for {name}: that it gets its whole share; the machine is busy with other things");
        }
    }
    Ok(())
}

/// The memory group of this agent's only executor: its directory, and its anonymous memory and limit in bytes.
fn memory_group(agent: &str) -> Result<Option<PathBuf>> {
    let has = |dir: &Path| ["memory.limit_in_bytes", "memory.max"].iter().any(|file| dir.join(file).exists()) && !children(dir);
    Ok(groups(agent)?.into_iter().filter(|dir| has(dir)).max_by_key(|dir| anonymous(dir).unwrap_or(0)))
}

fn children(dir: &Path) -> bool {
    let threaded = std::fs::read_to_string(dir.join("cgroup.type")).is_ok_and(|t| t.contains("threaded"));
    !threaded && dir.join("memory.limit_in_bytes").exists() && std::fs::read_dir(dir).is_ok_and(|d| d.flatten().any(|e| e.path().is_dir()))
}

/// Memory that is not mapped from files; what guests write to files is given back when somebody needs it.
fn anonymous(dir: &Path) -> Option<u64> {
    let stat = std::fs::read_to_string(dir.join("memory.stat")).ok()?;
    let value = |key: &str| stat.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.parse().ok());
    value("total_rss").or_else(|| value("anon"))
}

fn limit(dir: &Path) -> Option<u64> {
    ["memory.limit_in_bytes", "memory.max"].iter().find_map(|file| std::fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok())
}

#[test]
fn all_slots_attacked_at_once_never_bring_their_executor_to_its_limit() -> Result {
    if !is_root() {
        eprintln!("NOT TESTED: memory limits need cgroups, and this is not root");
        return Ok(());
    }
    let c = one_agent("2")?;
    let agent = c.json(&["agents"])?[0]["id"].as_str().context("an id")?.to_owned();
    const EACH: u64 = 64 << 20;
    let greedy = [
        ("memory-held", false),
        ("memory-held", false),
        ("memory-fill", false),
        ("paths-of-a-mebibyte", true),
        ("read-large", true),
        ("component-file-streams-held", true),
        ("component-pollables-held", false),
        ("memory-held", false),
    ];
    // No time limit: on a busy machine they would end before all of them have what they want.
    let jobs = submit_all(&c, &["--cpus", "0.25", "--mem", "64MiB"], &greedy)?;
    let (mut most, mut of) = (0, 0);
    let mut workers = Vec::new();
    // What they do once they have all that they can get is the attack: it is watched for so many rounds more.
    let mut rounds = 50;
    eventually("together they hold what they may have, or nearly", || {
        if let Some(dir) = memory_group(&agent)? {
            most = most.max(anonymous(&dir).unwrap_or(0));
            of = limit(&dir).unwrap_or(of).max(of);
        }
        if workers.is_empty() {
            workers = executor_pids(&c, " work")?;
        }
        std::thread::sleep(Duration::from_millis(20));
        let tasks = c.json(&["ps", "--all"])?;
        let running = tasks.as_array().is_some_and(|t| t.len() == jobs.len() && t.iter().all(|t| t["state"] == "RUNNING"));
        let there = running && most > EACH * 3;
        rounds -= u32::from(there);
        Ok(there && rounds == 0)
    })?;
    for job in &jobs {
        c.ok(&["kill", job])?;
    }
    eventually("all of them ended", || {
        let tasks = c.json(&["ps", "--all"])?;
        Ok(tasks.as_array().is_some_and(|t| t.iter().all(|t| t["state"] == "KILLED")))
    })?;
    let tasks = EACH * jobs.len() as u64;
    eprintln!("at most {} MiB of {} MiB, of which the tasks may have {} MiB", most >> 20, of >> 20, tasks >> 20);
    ensure!(most < of, "{most} of {of}");
    // Its processes are the ones it had: nothing was killed for its memory.
    ensure!(executor_pids(&c, " work")? == workers, "the executor was replaced");
    Ok(())
}

#[test]
fn bytes_of_files_and_streams_are_counted() -> Result {
    let c = one_agent("1")?;
    let time = format!("{}ms", patience(Duration::from_secs(1)).as_millis());
    // Each round reads nine bytes twice; a component's streams read them once each.
    for (name, flags, per_read) in [("read-large", &["--timeout", &time][..], 9), ("component-file-streams", &["--mem", "256MiB"], 9)] {
        let path = with_directory(&c, name)?.display().to_string();
        c.smalti(&[&["run"], flags, &[&*path]].concat())?;
        let tasks = c.json(&["ps", "--all"])?;
        let usage = &tasks.as_array().and_then(|t| t.last()).context("a task")?["usage"];
        let read = usage["bytes_read"].as_u64().context("bytes read")?;
        ensure!(read > 0 && read % per_read == 0, "{name}: {usage}");
        ensure!(usage["bytes_written"].as_u64() == Some(0), "{name}: {usage}");
    }
    Ok(())
}
