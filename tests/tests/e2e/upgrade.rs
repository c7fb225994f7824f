//! One process after another is replaced by a build at another place, under whatever runs: nothing is lost, nothing runs twice.

use crate::executors::executor_pids;
use crate::{Result, eventually, guest};
use anyhow::Context;
use nix::sys::signal::Signal;
use serde_json::Value;
use smalti_tests::{AgentConfig, Cluster, Config};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const ITEMS: u64 = 400;

fn config() -> AgentConfig {
    let flags = ["--process-pool", "0"].map(str::to_owned).to_vec();
    AgentConfig { cpus: "4".into(), mem: "4GiB".into(), flags, ..AgentConfig::default() }
}

/// State and attempt of each job's task.
fn singles(c: &Cluster, jobs: &[String]) -> Result<BTreeMap<String, (Value, Value)>> {
    let tasks = c.json(&["ps", "--all"])?;
    let tasks = tasks.as_array().context("a list")?;
    let of = |job: &String| tasks.iter().find(|t| t["job_id"] == **job).map(|t| (t["state"].clone(), t["attempt"].clone()));
    Ok(jobs.iter().filter_map(|job| Some((job.clone(), of(job)?))).collect())
}

fn all_run_as_they_did(c: &Cluster, jobs: &[String], after: &str) -> Result {
    // A scheduler that has just started hears of its tasks from the master.
    eventually(&format!("all run after {after}"), || {
        // Nobody may answer yet.
        let Ok(states) = singles(c, jobs) else { return Ok(false) };
        for (job, (_, attempt)) in &states {
            anyhow::ensure!(*attempt == 0, "{job} was started again after {after}: {states:?}");
        }
        Ok(states.len() == jobs.len() && states.values().all(|(state, _)| state == "RUNNING"))
    })
}

/// Whether the process runs this file, and not another one of the same bytes.
fn runs(pid: i32, program: &Path) -> Result<bool> {
    let (running, file) = (std::fs::metadata(format!("/proc/{pid}/exe"))?, std::fs::metadata(program)?);
    Ok((running.dev(), running.ino()) == (file.dev(), file.ino()))
}

#[test]
fn master_scheduler_and_agent_are_replaced_one_after_another_under_all_that_runs() -> Result {
    let mut c = Cluster::start(Config { agents: vec![config()], ..Config::default() })?;
    let misbehave = guest(&c, "misbehave")?;
    let submit = |c: &Cluster, args: &[&str]| Ok::<_, anyhow::Error>(c.ok(&[&["submit"], args].concat())?.trim().to_owned());
    let (mut jobs, mut arrays) = (Vec::new(), Vec::new());
    for class in ["instance", "process"] {
        let common = ["--isolation", class, "--cpus", "0.2"];
        jobs.push(submit(&c, &[&common[..], &[&misbehave, "--", "until-stopped"]].concat())?);
        jobs.push(submit(&c, &[&common[..], &["--exclusive", &misbehave, "--", "until-stopped"]].concat())?);
        let items = if class == "process" { ITEMS / 10 } else { ITEMS }.to_string();
        let array = ["--items", &items, "--max-parallel", "2", &misbehave, "--", "tick", "2", "10"];
        arrays.push((submit(&c, &[&common[..], &array].concat())?, items));
    }
    all_run_as_they_did(&c, &jobs, "their start")?;
    let before = executor_pids(&c, " work")?;
    let old = c.paths.executor();
    let new = c.paths.copied_to(&c.dir().join("new"))?;
    c.paths = new.clone();
    c.crash_master()?;
    all_run_as_they_did(&c, &jobs, "the new master")?;
    c.restart_scheduler(Signal::SIGKILL)?;
    all_run_as_they_did(&c, &jobs, "the new scheduler")?;
    c.crash_agent(0, &config())?;
    all_run_as_they_did(&c, &jobs, "the new agent")?;
    // New executors are new ones, what they had goes on in the old ones.
    let fresh = submit(&c, &["--isolation", "process", "--cpus", "0.2", &misbehave, "--", "until-stopped"])?;
    jobs.push(fresh);
    all_run_as_they_did(&c, &jobs, "another task")?;
    let now = executor_pids(&c, " work")?;
    let (mut of_old, mut of_new) = (0, 0);
    for pid in now {
        // One of an item may have ended since it was listed.
        let (Ok(is_old), Ok(is_new)) = (runs(pid, &old), runs(pid, &new.executor())) else { continue };
        assert!(is_old != is_new && (is_new || before.contains(&pid)), "executor {pid} is of neither build");
        of_old += usize::from(is_old);
        of_new += usize::from(is_new);
    }
    assert!(of_old >= 3 && of_new >= 1, "{of_old} executors of the old build, {of_new} of the new one");
    for (array, items) in &arrays {
        assert_eq!(c.smalti(&["wait", array])?.code, 0, "{}", c.logs());
        let expected: String = (0..items.parse()?).flat_map(|i: u64| (0..2).map(move |n| format!("tick {i} {n}\n"))).collect();
        assert!(c.ok(&["logs", array])? == expected, "the output of {array} is not whole");
        let items = c.json(&["ps", "--all", "--items", array])?;
        let again = items.as_array().context("a list")?.iter().filter(|t| t["attempt"] != 0).count();
        assert_eq!(again, 0, "nothing was lost, so nothing ran twice");
    }
    for job in &jobs {
        c.ok(&["kill", job])?;
        c.smalti(&["wait", job])?;
        assert_eq!(c.ok(&["logs", job])?, "running\nasked to stop\n");
    }
    Ok(())
}
