//! Executors are processes under a supervisor, in cgroups of their own.

use crate::{Result, eventually, guest, has_cgroups, one_agent};
use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smalti_tests::Cluster;

/// Processes whose command line has `smalti-executor` and the word `what`, and which are this cluster's: they have its directory
/// in their arguments or open in it, or they descend from an agent of it. Which files one has open only root can see.
pub(crate) fn executor_pids(c: &Cluster, what: &str) -> Result<Vec<i32>> {
    let dir = c.dir().display().to_string();
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let text = std::fs::read(entry.path().join("cmdline")).map(|b| String::from_utf8_lossy(&b).replace('\0', " ")).unwrap_or_default();
        if !text.contains("smalti-executor") || !text.contains(what) {
            continue;
        }
        let fds = std::fs::read_dir(entry.path().join("fd"))
            .map(|fds| fds.filter_map(|f| std::fs::read_link(f.ok()?.path()).ok()).any(|p| p.starts_with(&dir)))
            .unwrap_or(false);
        if fds || text.contains(&dir) || c.agents.iter().any(|a| descends_from(pid, a.pid())) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

fn descends_from(pid: i32, from: u32) -> bool {
    let parent = |pid: i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it may have anything in it.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    std::iter::successors(Some(pid), |pid| parent(*pid)).any(|pid| u32::try_from(pid) == Ok(from))
}

#[test]
fn an_executor_that_dies_takes_only_its_own_tasks_with_it() -> Result {
    let c = one_agent("2")?;
    let guest = guest(&c, "misbehave")?;
    let job = c.ok(&["submit", &guest, "--", "sleep", "3600000"])?;
    let job = job.trim();
    eventually("it runs", || Ok(c.json(&["ps"])?[0]["state"] == "RUNNING"))?;
    let workers = executor_pids(&c, " work")?;
    assert_eq!(workers.len(), 1, "one executor per framework and agent");
    kill(Pid::from_raw(workers[0]), Signal::SIGKILL)?;
    // The infrastructure is to blame, so the task is tried again; the first attempt's end is on record.
    eventually("a new attempt runs", || {
        let tasks = c.json(&["ps"])?;
        Ok(tasks[0]["state"] == "RUNNING" && tasks[0]["attempt"].as_u64() > Some(0))
    })?;
    let why = c.ok(&["explain", job])?;
    assert!(why.contains("SIGKILL") || why.contains("signal 9"), "{why}");
    assert_eq!(c.smalti(&["run", &guest, "--", "exit", "4"])?.code, 4);
    c.ok(&["kill", "--grace", "0s", job])?;
    assert_eq!(c.smalti(&["wait", job])?.code, 137);
    Ok(())
}

#[test]
fn the_executor_is_small_and_has_no_compiler_in_it() -> Result {
    let paths = smalti_tests::Paths::find()?;
    let bytes = std::fs::read(paths.executor())?;
    let contains = |word: &[u8]| bytes.windows(word.len()).any(|w| w == word);
    assert!(!contains(b"cranelift_codegen"), "Cranelift is in the executor");
    Ok(())
}

#[test]
fn slots_run_in_cgroups_of_their_own_and_nothing_is_left() -> Result {
    if !has_cgroups() {
        eprintln!("NOT TESTED: cgroups need root");
        return Ok(());
    }
    let c = one_agent("2")?;
    let agent = c.json(&["agents"])?[0]["id"].as_str().context("an id")?.to_owned();
    let job = c.ok(&["submit", "--cpus", "0.3", &guest(&c, "misbehave")?, "--", "loop"])?;
    let job = job.trim();
    eventually("it runs", || Ok(c.json(&["ps"])?[0]["state"] == "RUNNING"))?;
    eventually("cpu.stat of its slot shows throttling", || {
        Ok(groups(&agent)?.iter().any(|dir| {
            let stat = std::fs::read_to_string(dir.join("cpu.stat")).unwrap_or_default();
            stat.lines().any(|l| l.strip_prefix("nr_throttled ").is_some_and(|n| n.trim() != "0"))
        }))
    })?;
    c.ok(&["kill", "--grace", "0s", job])?;
    c.smalti(&["wait", job])?;
    let pids = executor_pids(&c, "")?;
    assert!(!pids.is_empty());
    drop(c);
    eventually("no cgroup is left", || Ok(groups(&agent)?.is_empty()))?;
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}/ns")).exists() || std::fs::read_link(format!("/proc/{pid}/exe")).is_err());
    }
    Ok(())
}

/// All cgroup directories below one named after this agent.
pub(crate) fn groups(agent: &str) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.filter_map(|e| e.ok()) {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                let path = entry.path();
                if path.to_string_lossy().contains(agent) {
                    found.push(path.clone());
                }
                dirs.push(path);
            }
        }
    }
    Ok(found)
}
