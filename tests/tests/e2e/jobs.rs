//! Jobs live in the scheduler, not in the command line.

use crate::{Result, cluster, eventually, guest, one_agent};
use anyhow::Context;
use nix::sys::signal::Signal;
use smalti_tests::Process;
use std::time::Duration;

#[test]
fn a_job_goes_on_when_the_command_line_is_gone() -> Result {
    let c = one_agent("1")?;
    let command = c.command(&["run", &guest(&c, "misbehave")?, "--", "spin-us", "700000"]);
    let mut run = Process::spawn("run", command, c.dir())?;
    eventually("the job runs", || Ok(c.json(&["jobs"])?[0]["state"] == "RUNNING"))?;
    run.signal(Signal::SIGKILL)?;
    run.wait(Duration::from_secs(10))?;
    let job = c.json(&["jobs", "--all"])?[0]["job_id"].as_str().context("a job id")?.to_owned();
    assert_eq!(c.smalti(&["wait", &job])?.code, 0);
    Ok(())
}

#[test]
fn ctrl_c_kills_the_job() -> Result {
    let c = one_agent("1")?;
    let command = c.command(&["run", "--grace", "0s", &guest(&c, "misbehave")?, "--", "loop"]);
    let mut run = Process::spawn("run", command, c.dir())?;
    eventually("the job runs", || Ok(c.json(&["jobs"])?[0]["state"] == "RUNNING"))?;
    run.signal(Signal::SIGINT)?;
    assert_eq!(run.wait(Duration::from_secs(30))?.code(), Some(137));
    assert_eq!(c.json(&["jobs", "--all"])?[0]["state"], "KILLED");
    Ok(())
}

#[test]
fn every_list_has_the_documented_json_keys() -> Result {
    let c = cluster()?;
    let job = c.ok(&["submit", &guest(&c, "hello")?])?;
    c.smalti(&["wait", job.trim()])?;
    let has = |value: &serde_json::Value, keys: &[&str]| {
        for key in keys {
            assert!(value.get(*key).is_some(), "no {key} in {value}");
        }
    };
    let agents = c.json(&["agents"])?;
    assert_eq!(agents.as_array().context("a list")?.len(), 2);
    has(&agents[0], &["id", "hostname", "state", "total", "used", "offered", "free", "attributes", "isolation"]);
    has(&agents[0]["total"], &["cpus", "mem", "disk", "ports"]);
    assert_eq!(agents[0]["total"]["cpus"], 2.0);
    let ports: std::collections::BTreeSet<String> =
        agents.as_array().context("a list")?.iter().map(|a| a["total"]["ports"].to_string()).collect();
    assert_eq!(ports, ["[[20000,20099]]", "[[20100,20199]]"].map(String::from).into());
    for attribute in ["arch", "os"] {
        assert!(agents[0]["attributes"].get(attribute).is_some(), "{agents}");
    }
    let tasks = c.json(&["ps", "--all"])?;
    has(
        &tasks[0],
        &["task_id", "job_id", "item", "framework_id", "role", "agent_id", "state", "reason", "message", "exit_code", "usage", "attempt"],
    );
    has(&tasks[0]["usage"], &["cpu_us", "wall_us", "peak_memory", "bytes_read", "bytes_written", "fuel"]);
    let frameworks = c.json(&["frameworks"])?;
    assert_eq!(frameworks.as_array().context("a list")?.len(), 1);
    assert!(c.json(&["offers"])?.is_array());
    assert!(c.json(&["jobs", "--all"])?.is_array());
    Ok(())
}

#[test]
fn bundles_are_pushed_listed_and_inspected() -> Result {
    let c = one_agent("1")?;
    let hello = guest(&c, "hello")?;
    let pushed = c.ok(&["bundle", "push", &hello])?;
    let digest = pushed.split_whitespace().find(|w| w.starts_with("blake3:")).context("a digest")?.to_owned();
    let list = c.json(&["bundle", "ls"])?;
    assert!(list.as_array().context("a list")?.iter().any(|b| b["digest"] == digest.as_str()), "{list}");
    for what in [&*hello, &digest] {
        let facts = c.json(&["bundle", "inspect", what])?;
        assert_eq!((facts["digest"].as_str(), facts["kind"].as_str()), (Some(&*digest), Some("module")), "{facts}");
    }
    assert_eq!(c.smalti(&["run", &digest])?.code, 0);
    Ok(())
}

#[test]
fn run_says_on_which_grounds_it_waits_or_refuses() -> Result {
    let c = one_agent("1")?;
    let guest = guest(&c, "misbehave")?;
    let first = c.ok(&["submit", "--cpus", "1", &guest, "--", "sleep", "3600000"])?;
    eventually("it runs", || Ok(c.json(&["jobs"])?[0]["state"] == "RUNNING"))?;
    let second = c.ok(&["submit", "--cpus", "1", &guest, "--", "exit", "0"])?;
    let why = c.ok(&["explain", second.trim()])?;
    assert!(why.contains("cpus"), "{why}");
    c.ok(&["kill", "--grace", "0s", first.trim()])?;
    assert_eq!(c.smalti(&["wait", second.trim()])?.code, 0);
    Ok(())
}
