//! An executor that was taken over is an attacker with a socket to the agent. It harms its own tasks and nobody else's, and the agent
//! believes nothing that it says about others. The liar is `examples/lying-executor.rs`.

use crate::{Result, eventually, guest};
use anyhow::Context;
use smalti_tests::{AgentConfig, Cluster, Config};

/// An agent whose executors all are liars.
fn cluster() -> Result<Cluster> {
    // Cargo builds examples beside the tests.
    let test = std::env::current_exe()?;
    let liar = test.parent().and_then(|deps| deps.parent()).context("a target directory")?.join("examples/lying-executor");
    anyhow::ensure!(liar.exists(), "{} is not there: cargo test -p smalti-tests builds it", liar.display());
    let agent = AgentConfig { cpus: "4".into(), flags: vec!["--executor".into(), liar.display().to_string()], ..AgentConfig::default() };
    let c = Cluster::start(Config { agents: vec![agent], isolation: "none".into(), ..Config::default() })?;
    eventually("the scheduler is known to the master", || Ok(c.smalti(&["jobs"])?.code == 0))?;
    Ok(c)
}

/// Runs a task of this role whose executor does `what`; its exit code, and what `ps` shows of it.
fn run(c: &Cluster, role: &str, what: &str) -> Result<(i32, serde_json::Value)> {
    let guest = guest(c, "misbehave")?;
    let done = c.smalti(&["run", "--role", role, "--retries", "0", "--name", what, &guest, "--", what])?;
    let tasks = c.json(&["ps", "--all"])?;
    let task = tasks.as_array().and_then(|t| t.iter().rev().find(|t| t["role"] == role)).cloned().context("a task")?;
    Ok((done.code, task))
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim_end_matches("kB").trim().parse()?)
}

#[test]
fn what_it_says_about_others_is_not_believed() -> Result {
    let c = cluster()?;
    // A task of somebody else, which runs in an executor of its own meanwhile and never says that it ended.
    let victim = c.ok(&["submit", "--role", "victim", &guest(&c, "misbehave")?, "--", "waits"])?;
    let victim = victim.trim();
    let state = || Ok::<_, anyhow::Error>(c.json(&["ps", victim])?[0]["state"].clone());
    eventually("the victim runs", || Ok(state()? == "RUNNING"))?;
    for what in ["about-others", "honest", "about-others"] {
        let (code, task) = run(&c, "liar", what)?;
        assert_eq!((code, task["state"].as_str()), (0, Some("FINISHED")), "{what}: {task}");
        assert_eq!(state()?, "RUNNING");
    }
    let ignored = c.json(&["agents"])?[0]["counters"]["executor_statements_ignored"].as_u64();
    eprintln!("statements ignored: {ignored:?}");
    c.ok(&["kill", "--grace", "0s", victim])?;
    Ok(())
}

#[test]
fn absurd_figures_and_reasons_are_cut_to_what_can_be() -> Result {
    let c = cluster()?;
    let (code, task) = run(&c, "liar", "absurd-usage")?;
    let usage = &task["usage"];
    assert_eq!(code, 0, "{task}");
    assert!(usage["wall_us"].as_u64().is_some_and(|wall| wall < 60_000_000), "{usage}");
    assert!(usage["peak_memory"].as_u64().is_some_and(|peak| peak <= 1 << 30), "{usage}");
    assert!(usage["fuel"].is_null(), "{usage}");
    let (code, task) = run(&c, "liar", "unknown-reason")?;
    assert_eq!((code, task["state"].as_str(), task["reason"].as_str()), (134, Some("FAILED"), Some("TRAP")), "{task}");
    assert!(task["message"].as_str().is_some_and(|m| m.len() <= 4_096), "{task}");
    // The master has not lost the agent over it, and shows the executor's words about itself only in part.
    let executor = || Ok::<_, anyhow::Error>(c.json(&["agents"])?[0]["executors"][0].clone());
    eventually("its executor is reported", || Ok(executor()?["allocator"].is_string()))?;
    let executor = executor()?;
    let words = executor["allocator"].as_str().context("its word")?;
    assert!(words.len() <= 32 && !words.contains('\u{1b}'), "{words:?}");
    let landlock = executor["layers"]["landlock"].as_str().unwrap_or_default();
    assert!(landlock.len() <= 300 && !landlock.contains('\u{1b}'), "{landlock:?}");
    Ok(())
}

#[test]
fn one_that_breaks_the_rules_ends_with_its_tasks_and_nothing_else() -> Result {
    let c = cluster()?;
    let agent = c.agents[0].pid();
    for what in ["bomb", "descriptors", "garbage", "endless-frame", "hello-again", "closes", "keeps-lying"] {
        let job = c.ok(&["submit", "--role", "liar", "--retries", "0", &guest(&c, "misbehave")?, "--", what])?;
        let job = job.trim();
        eventually(what, || {
            let why = c.ok(&["explain", job])?;
            Ok(why.contains("EXECUTOR_TERMINATED") || why.contains("executor died"))
        })?;
        c.ok(&["kill", "--grace", "0s", job])?;
        assert_eq!(run(&c, "honest", "honest")?.0, 0, "after {what}");
        let resident = resident_kib(agent)?;
        assert!(resident < 400 << 10, "the agent has {resident} KiB after {what}");
    }
    Ok(())
}

#[test]
fn one_that_floods_slows_nobody_else_down() -> Result {
    let c = cluster()?;
    let job = c.ok(&["submit", "--role", "liar", &guest(&c, "misbehave")?, "--", "floods"])?;
    let job = job.trim();
    eventually("it floods", || Ok(c.json(&["agents"])?[0]["counters"]["executor_frames_received"].as_u64() > Some(20_000)))?;
    for _ in 0..20 {
        assert_eq!(run(&c, "honest", "honest")?.0, 0);
    }
    let resident = resident_kib(c.agents[0].pid())?;
    assert!(resident < 400 << 10, "the agent has {resident} KiB");
    c.ok(&["kill", "--grace", "0s", job])?;
    Ok(())
}
