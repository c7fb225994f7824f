//! Scheduler and master are killed and come back: jobs go on, and clients with them, without a byte lost or twice.

use crate::{Result, cluster, eventually, guest, one_agent};
use anyhow::Context;
use nix::sys::signal::Signal;
use smalti_tests::{Cluster, Config, Finished};
use std::fs::File;
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::Duration;

/// A client beside the test.
fn beside(c: &Cluster, args: &[&str]) -> JoinHandle<Result<Finished>> {
    let command = c.command(args);
    std::thread::spawn(move || Finished::of(command, b"", Duration::from_secs(120)))
}

fn end(client: JoinHandle<Result<Finished>>) -> Result<Finished> {
    client.join().map_err(|_| anyhow::anyhow!("a client's thread panicked"))?
}

/// Waits until the only job has finished so many items.
fn finished(c: &Cluster, items: u64) -> Result {
    eventually(&format!("{items} items have finished"), || {
        let jobs = c.smalti(&["jobs", "--all", "--output", "json"])?;
        // Just after a restart nobody may answer.
        let jobs: serde_json::Value = serde_json::from_str(&jobs.stdout).unwrap_or_default();
        Ok(jobs[0]["items_finished"].as_u64().is_some_and(|n| n >= items))
    })
}

fn ticks(items: u64, each: u64) -> String {
    (0..items).flat_map(|i| (0..each).map(move |n| format!("tick {i} {n}\n"))).collect()
}

#[test]
fn a_map_with_a_reduce_goes_on_when_its_scheduler_is_killed() -> Result {
    let mut c = cluster()?;
    let (ticking, counting) = (guest(&c, "misbehave")?, guest(&c, "count-lines-with")?);
    let map = ["map", &ticking, "--items", "400", "--reduce", &counting, "--reduce-arg", "tick", "--", "tick", "3", "10"];
    let map = beside(&c, &map);
    for items in [20, 150] {
        finished(&c, items)?;
        c.restart_scheduler(Signal::SIGKILL)?;
    }
    let done = end(map)?;
    assert_eq!((done.code, done.stdout.trim()), (0, "1200"), "{}\n{}", done.stderr, c.logs());
    assert!(done.stderr.contains("lost the scheduler, connecting again"), "{}", done.stderr);
    let job = &c.json(&["jobs", "--all"])?[0];
    assert_eq!((&job["state"], &job["items_finished"]), (&"FINISHED".into(), &400.into()), "{job}");
    let job = job["job_id"].as_str().context("an id")?;
    let items = c.json(&["ps", "--all", "--items", job])?;
    let again = items.as_array().context("a list")?.iter().filter(|t| t["attempt"] != 0).count();
    assert_eq!(again, 0, "nothing was lost, so nothing ran twice");
    Ok(())
}

#[test]
fn a_maps_output_is_whole_when_its_scheduler_is_stopped_and_started() -> Result {
    let mut c = cluster()?;
    let ticking = guest(&c, "misbehave")?;
    let map = beside(&c, &["map", &ticking, "--items", "300", "--", "tick", "3", "10"]);
    finished(&c, 30)?;
    c.restart_scheduler(Signal::SIGTERM)?;
    finished(&c, 100)?;
    c.restart_scheduler(Signal::SIGKILL)?;
    let done = end(map)?;
    assert_eq!(done.code, 0, "{}\n{}", done.stderr, c.logs());
    assert_eq!(done.stdout, ticks(300, 3));
    Ok(())
}

#[test]
fn run_wait_and_logs_go_on_through_restarts_of_scheduler_and_master() -> Result {
    let mut c = one_agent("2")?;
    let ticking = guest(&c, "misbehave")?;
    let run = beside(&c, &["run", &ticking, "--", "tick", "100", "50", "3"]);
    eventually("the job runs", || Ok(c.json(&["jobs"])?[0]["state"] == "RUNNING"))?;
    let job = c.json(&["jobs"])?[0]["job_id"].as_str().context("an id")?.to_owned();
    let (mut logs, printed) = (c.command(&["logs", "-f", &job]), c.dir().join("logs.txt"));
    logs.stdin(Stdio::null()).stdout(File::create(&printed)?).stderr(Stdio::piped());
    let logs = logs.spawn()?;
    eventually("logs follows", || Ok(!std::fs::read(&printed)?.is_empty()))?;
    c.restart_scheduler(Signal::SIGKILL)?;
    eventually("the job is known again", || Ok(c.smalti(&["explain", &job])?.code == 0))?;
    c.crash_master()?;
    eventually("the job is known again", || Ok(c.smalti(&["explain", &job])?.code == 0))?;
    assert_eq!(c.json(&["jobs"])?[0]["state"], "RUNNING", "the restarts came in the middle");
    assert_eq!(c.smalti(&["wait", &job])?.code, 3);
    let done = end(run)?;
    assert_eq!((done.code, done.stdout), (3, ticks(1, 100)), "{}\n{}", done.stderr, c.logs());
    assert!(done.stderr.contains("lost the scheduler"), "{}", done.stderr);
    let done = logs.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!((done.status.code(), std::fs::read_to_string(&printed)?), (Some(0), ticks(1, 100)), "{said}\n{}", c.logs());
    assert!(said.contains("lost the scheduler"), "{said}");
    let tasks = c.json(&["ps", "--all"])?;
    assert_eq!(tasks[0]["attempt"], 0, "it ran once: {tasks}");
    Ok(())
}

#[test]
fn a_map_goes_on_when_the_master_is_killed() -> Result {
    let mut c = cluster()?;
    let (ticking, counting) = (guest(&c, "misbehave")?, guest(&c, "count-lines-with")?);
    let map = ["map", &ticking, "--items", "300", "--reduce", &counting, "--reduce-arg", "tick", "--", "tick", "3", "10"];
    let map = beside(&c, &map);
    for items in [20, 150] {
        finished(&c, items)?;
        c.crash_master()?;
    }
    let done = end(map)?;
    assert_eq!((done.code, done.stdout.trim()), (0, "900"), "{}\n{}", done.stderr, c.logs());
    Ok(())
}

#[test]
fn a_scheduler_that_says_ready_is_found_by_clients() -> Result {
    let mut c = Cluster::start(Config { agents: Vec::new(), ..Config::default() })?;
    let hello = guest(&c, "hello")?;
    c.ok(&["submit", &hello])?;
    // When it looks for the master again is left to chance.
    for _ in 0..10 {
        c.boot_scheduler_before_master()?;
        c.ok(&["submit", &hello])?;
    }
    Ok(())
}

#[test]
fn a_job_that_was_only_submitted_is_not_lost_with_its_scheduler() -> Result {
    let mut c = one_agent("1")?;
    let ticking = guest(&c, "misbehave")?;
    let jobs: Vec<String> = (0..5)
        .map(|_| Ok(c.ok(&["submit", &ticking, "--cpus", "1", "--", "tick", "1", "200"])?.trim().to_owned()))
        .collect::<Result<_>>()?;
    c.restart_scheduler(Signal::SIGKILL)?;
    eventually("the jobs are known again", || Ok(c.smalti(&["explain", &jobs[4]])?.code == 0))?;
    for job in &jobs {
        assert_eq!(c.smalti(&["wait", job])?.code, 0, "{}", c.logs());
        assert_eq!(c.ok(&["logs", job])?, "tick 0 0\n");
    }
    Ok(())
}

#[test]
fn exclusive_is_for_single_tasks() -> Result {
    let c = one_agent("1")?;
    let ticking = guest(&c, "misbehave")?;
    let refused = c.smalti(&["map", &ticking, "--items", "2", "--exclusive", "--", "tick", "1"])?;
    assert_eq!(refused.code, 125);
    assert!(refused.stderr.contains("items of a map may run more than once"), "{}", refused.stderr);
    let ran = c.smalti(&["run", "--exclusive", &ticking, "--", "tick", "1", "0", "0"])?;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "tick 0 0\n"), "{}\n{}", ran.stderr, c.logs());
    Ok(())
}
