//! `kill` stops what loops, what sleeps in a host call, and what is still being fetched.

use crate::{Result, eventually, guest, one_agent};
use anyhow::Context;
use smalti_tests::Cluster;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

fn state(c: &Cluster, job: &str) -> Result<String> {
    let tasks = c.json(&["ps", "--all"])?;
    let task = tasks.as_array().context("a list")?.iter().find(|t| t["job_id"] == job).cloned().unwrap_or_default();
    Ok(task["state"].as_str().unwrap_or("").to_owned())
}

fn kill_and_check(c: &Cluster, job: &str, flags: &[&str]) -> Result<Duration> {
    let start = Instant::now();
    c.ok(&[&["kill"], flags, &[job]].concat())?;
    let done = c.smalti(&["wait", job])?;
    let took = start.elapsed();
    assert_eq!(done.code, 137, "{}", done.stderr);
    assert_eq!(state(c, job)?, "KILLED");
    Ok(took)
}

#[test]
fn loops_and_sleeps_are_stopped() -> Result {
    let c = one_agent("2")?;
    let guest = guest(&c, "misbehave")?;
    for what in [&["loop"][..], &["sleep", "3600000"]] {
        let job = c.ok(&[&["submit", &*guest, "--"], what].concat())?;
        let job = job.trim();
        eventually("the task runs", || Ok(state(&c, job)? == "RUNNING"))?;
        let took = kill_and_check(&c, job, &["--grace", "0s"])?;
        // Two client processes are started in this time, too; a task that cannot be stopped would take an hour.
        assert!(took < smalti_tests::patience(Duration::from_secs(5)), "{what:?} took {took:?}");
    }
    Ok(())
}

#[test]
fn a_guest_is_asked_before_it_is_stopped() -> Result {
    let c = one_agent("1")?;
    let job = c.ok(&["submit", &guest(&c, "misbehave")?, "--", "until-stopped"])?;
    let job = job.trim();
    eventually("the task runs", || Ok(c.smalti(&["logs", job])?.stdout.contains("running")))?;
    c.ok(&["kill", job])?;
    c.smalti(&["wait", job])?;
    assert_eq!(c.ok(&["logs", job])?, "running\nasked to stop\n");
    Ok(())
}

#[test]
fn a_task_that_is_still_being_fetched_can_be_killed() -> Result {
    let c = one_agent("1")?;
    let origin = std::net::TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/app.wasm", origin.local_addr()?);
    let digest = format!("blake3:{}", "0".repeat(63) + "1");
    // Answers every request with the beginning of a body, and never with the rest.
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in origin.incoming().map_while(|s| s.ok()) {
            let mut stream = stream;
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n\0asm");
            open.push(stream);
        }
    });
    let job = c.ok(&["submit", &format!("{url}#{}", digest.replace("blake3:", "blake3="))])?;
    let job = job.trim();
    eventually("the task is being fetched", || Ok(state(&c, job)? == "STAGING"))?;
    // People see what it waits for.
    eventually("explain says how far it is", || Ok(c.ok(&["explain", job])?.contains(&format!("fetching {url}"))))?;
    eventually("ps says how far it is", || Ok(c.ok(&["ps"])?.contains("fetching")))?;
    kill_and_check(&c, job, &[])?;
    Ok(())
}

#[test]
fn an_array_can_be_killed() -> Result {
    let c = one_agent("2")?;
    let job = c.ok(&["submit", &guest(&c, "misbehave")?, "--items", "50", "--", "sleep", "3600000"])?;
    let job = job.trim();
    eventually("items run", || Ok(c.json(&["jobs"])?[0]["items_running"].as_u64() > Some(0)))?;
    c.ok(&["kill", "--grace", "0s", job])?;
    assert_eq!(c.smalti(&["wait", job])?.code, 137);
    eventually("resources are free again", || {
        let agents = c.json(&["agents"])?;
        Ok(agents[0]["used"]["cpus"].as_f64() == Some(0.0))
    })
}
