//! Outputs in a store: of the cluster in a bucket or a directory, and in a directory of the client.

use crate::{Result, eventually, guest, one_agent};
use anyhow::Context;
use nix::sys::signal::Signal;
use smalti_test_s3::S3;
use smalti_tests::{AgentConfig, Cluster, Config};
use std::path::Path;

/// Files below a directory with their content, by name.
fn files(dir: &Path) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let content = std::fs::read_to_string(entry.path())?;
        all.push((entry.file_name().to_string_lossy().into_owned(), content));
    }
    all.sort();
    Ok(all)
}

fn owned(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

/// What the guest `hello` leaves, which speaks on stderr, too.
fn hello_files(name: &str, out: &str) -> Vec<(String, String)> {
    owned(&[(&format!("{name}.0.stderr"), "hello is done\n"), (&format!("{name}.0.stdout"), out)])
}

/// Prints its item on stdout.
const GUEST: &str = include_str!("print_item.wat");

fn writes_to(root: &Path, env: Vec<(String, String)>) -> Result<Cluster> {
    let scheduler_flags = vec!["--output-root".into(), root.display().to_string()];
    Cluster::start(Config { agents: vec![AgentConfig::default()], scheduler_flags, env, ..Config::default() })
}

fn job_of(c: &Cluster) -> Result<String> {
    let jobs = c.json(&["jobs", "--all"])?;
    let last = jobs.as_array().and_then(|all| all.last()).context("a job")?;
    Ok(last["job_id"].as_str().context("its id")?.to_owned())
}

#[test]
fn outputs_lie_in_the_store_by_job_item_and_attempt_when_the_job_ends() -> Result {
    let s3 = S3::start()?;
    let root = tempfile::tempdir()?;
    let c = writes_to(root.path(), s3.env())?;
    let hello = guest(&c, "hello")?;
    let item = c.dir().join("item.wat");
    std::fs::write(&item, GUEST)?;
    let item = item.display().to_string();
    let directory = format!("file://{}/out", root.path().display());
    for (store, place) in [("s3://bucket/team/out", s3.path("team/out")), (directory.as_str(), root.path().join("out"))] {
        let out = c.ok(&["run", "--output-store", store, &hello, "--", "world"])?;
        assert_eq!(files(&place.join(job_of(&c)?))?, hello_files("task", &out), "{store}");
        let out = c.ok(&["map", &item, "--items", "30", "--output-store", store])?;
        assert_eq!(out.lines().count(), 30);
        let mut expected: Vec<_> = out.lines().enumerate().map(|(n, line)| (format!("{n}.0.stdout"), format!("{line}\n"))).collect();
        expected.sort();
        let job = job_of(&c)?;
        assert_eq!(files(&place.join(&job))?, expected, "{store}");
        let jobs = c.json(&["jobs", "--all"])?;
        let view = jobs.as_array().and_then(|all| all.last()).context("a job")?;
        assert_eq!((&view["items_stored"], view["state"].as_str()), (&30.into(), Some("FINISHED")), "{view}");
        // A reduce's output is the job's; what fails has its exit code.
        let out = c.ok(&["map", &item, "--items", "3", "--reduce", &hello, "--reduce-arg", "cat", "--output-store", store])?;
        assert_eq!(files(&place.join(job_of(&c)?))?, owned(&[("reduce.0.stdout", &out)]));
        let done = c.smalti(&["run", "--output-store", store, "--retries", "1", &guest(&c, "misbehave")?, "--", "exit", "3"])?;
        assert_eq!(done.code, 3, "{}", done.stderr);
        assert!(files(&place.join(job_of(&c)?))?.iter().any(|(name, _)| name == "task.1.stdout"), "the attempt that counted");
    }
    Ok(())
}

#[test]
fn what_a_store_refuses_is_told_on_the_job_and_others_go_on() -> Result {
    let s3 = S3::start()?;
    let root = tempfile::tempdir()?;
    // The role may write there, and the store says no.
    let wrong = ("AWS_SECRET_ACCESS_KEY".to_owned(), "wrong-hush".to_owned());
    let c = writes_to(root.path(), s3.env().into_iter().filter(|(name, _)| *name != wrong.0).chain([wrong.clone()]).collect())?;
    let hello = guest(&c, "hello")?;
    for (store, says) in [
        ("s3://elsewhere/x", "may not write there"),
        ("file:///etc/smalti-out", "--output-root"),
        ("http://127.0.0.1/x", "no place for outputs"),
        ("out", "no place for outputs"),
    ] {
        let done = c.smalti(&["run", "--output-store", store, &hello])?;
        assert!(done.code == 125 && done.stderr.contains(says) && done.stdout.is_empty(), "{store}: {} {}", done.code, done.stderr);
    }
    let done = c.smalti(&["run", "--output-store", "s3://bucket/x", &hello, "--", "world"])?;
    assert_eq!(done.code, 125, "{}", done.stderr);
    assert!(done.stderr.contains("s3://bucket/x") && done.stderr.contains("smalti logs"), "{}", done.stderr);
    assert!(done.stderr.contains("SignatureDoesNotMatch") && !done.stderr.contains("hush"), "{}", done.stderr);
    let job = job_of(&c)?;
    let tasks = c.json(&["jobs", "--all"])?;
    let view = tasks.as_array().and_then(|all| all.last()).context("a job")?;
    assert_eq!((view["state"].as_str(), view["reason"].as_str()), (Some("FAILED"), Some("OUTPUT_FAILED")), "{view}");
    assert!(c.ok(&["explain", &job])?.contains("s3://bucket/x"));
    assert!(c.ok(&["logs", &job])?.contains("world"), "the agent still has it");
    let store = format!("file://{}", root.path().display());
    c.ok(&["run", "--output-store", &store, &hello])?;
    Ok(())
}

#[test]
fn a_scheduler_that_is_killed_while_it_writes_loses_and_doubles_nothing() -> Result {
    const ITEMS: usize = 3_000;
    let root = tempfile::tempdir()?;
    let mut c = writes_to(root.path(), Vec::new())?;
    let item = c.dir().join("item.wat");
    std::fs::write(&item, GUEST)?;
    let store = format!("file://{}", root.path().display());
    let args = ["submit", &item.display().to_string(), "--items", &ITEMS.to_string(), "--output-store", &store];
    let job = c.ok(&args)?.trim().to_owned();
    let place = root.path().join(&job);
    let there = || std::fs::read_dir(&place).map_or(0, Iterator::count);
    for least in [1, ITEMS / 2] {
        eventually("some outputs are there", || Ok(there() >= least))?;
        c.restart_scheduler(Signal::SIGKILL)?;
    }
    // A client that asks before it has registered again is told that there is none.
    eventually("the scheduler is back", || Ok(c.smalti(&["jobs"])?.code == 0))?;
    let done = c.smalti(&["wait", &job])?;
    assert_eq!(done.code, 0, "{}\n{}", done.stderr, c.logs());
    let mut expected: Vec<_> = (0..ITEMS).map(|n| format!("{n}.0.stdout")).collect();
    expected.sort();
    let all = files(&place)?;
    assert_eq!(all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), expected, "each once, and nothing unfinished");
    for (name, content) in all {
        assert_eq!(name.split('.').next(), Some(content.trim()), "{name}");
    }
    Ok(())
}

#[test]
fn the_client_collects_outputs_in_a_directory() -> Result {
    let c = one_agent("2")?;
    let (hello, dir) = (guest(&c, "hello")?, c.dir().join("collected"));
    let item = c.dir().join("item.wat");
    std::fs::write(&item, GUEST)?;
    let at = dir.display().to_string();
    let out = c.ok(&["run", "--collect", &at, &hello, "--", "world"])?;
    assert_eq!(files(&dir.join(job_of(&c)?))?, hello_files("task", &out));
    let out = c.ok(&["map", &item.display().to_string(), "--items", "12", "--collect", &at])?;
    let mut expected: Vec<_> = out.lines().enumerate().map(|(n, line)| (format!("{n}.0.stdout"), format!("{line}\n"))).collect();
    expected.sort();
    assert_eq!(files(&dir.join(job_of(&c)?))?, expected);
    let empty = guest(&c, "empty")?;
    c.ok(&["map", &empty, "--items", "2", "--collect", &at])?;
    assert_eq!(files(&dir.join(job_of(&c)?))?, owned(&[("0.0.stdout", ""), ("1.0.stdout", "")]));
    let done = c.smalti(&["submit", "--collect", &at, &hello])?;
    assert!(done.code == 125 && done.stderr.contains("--output-store"), "{}", done.stderr);
    Ok(())
}
