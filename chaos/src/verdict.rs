//! The count at the end: every job had its outcome, every task and item one terminal status, every resource is free again.

use crate::load::Job;
use crate::nodes::Cluster;
use crate::witness::Witness;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use smalti_tests::Finished;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// For a question to the cluster.
const ANSWER: Duration = Duration::from_secs(60);
/// How long resources may take to come back after the last job.
const RELEASE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Judges, and says what was counted.
pub(crate) fn judge(cluster: &Cluster, jobs: &[Job], witness: &Witness) -> Result<()> {
    let wrong: Vec<String> = jobs.iter().filter_map(Job::wrong).collect();
    ensure!(wrong.is_empty(), "{} of {} jobs ended wrongly:\n  {}", wrong.len(), jobs.len(), wrong.join("\n  "));
    let exclusive: Vec<String> = jobs.iter().filter(|j| j.exclusive).map(|j| j.name.clone()).collect();
    let (tasks, attempts) = witness.judge(&exclusive)?;
    let statuses = statuses(cluster)?;
    balanced(cluster)?;
    println!("{} jobs ended as they should; {statuses} tasks have one terminal status each", jobs.len());
    println!("{tasks} exclusive tasks were seen, {attempts} attempts, never two at a time; all resources are free again");
    Ok(())
}

fn json(cluster: &Cluster, args: &[&str]) -> Result<Value> {
    let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
    let done = Finished::of(cluster.command(&args), b"", ANSWER)?;
    ensure!(done.code == 0, "smalti {args:?} ended with {}: {}", done.code, done.stderr);
    serde_json::from_str(&done.stdout).with_context(|| format!("smalti {args:?} printed {:?}", done.stdout))
}

/// Every task that the scheduler knows has ended, once.
fn statuses(cluster: &Cluster) -> Result<usize> {
    let tasks = json(cluster, &["ps", "--all"])?;
    let tasks = tasks.as_array().context("`smalti ps` printed no list")?;
    let mut seen = BTreeSet::new();
    for task in tasks {
        let id = task["task_id"].as_str().context("a task has no id")?;
        ensure!(seen.insert(id), "task {id} is listed twice");
        ensure!(task["state"] == "FINISHED", "task {id} is {}: {}", task["state"], task["message"]);
        if let Some(items) = task["items"].as_object() {
            ensure!(items["finished"] == items["total"] && items["failed"] == 0, "array {id}: {items:?}");
        }
    }
    Ok(tasks.len())
}

/// Nothing is used any more, and what is offered and free is all there is.
fn balanced(cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + RELEASE;
    loop {
        let problem = match unbalanced(&json(cluster, &["agents"])?, cluster.agents()) {
            None => return Ok(()),
            Some(problem) => problem,
        };
        if Instant::now() > deadline {
            bail!("resources are not free {RELEASE:?} after the last job: {problem}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn unbalanced(agents: &Value, expected: usize) -> Option<String> {
    let agents = agents.as_array()?;
    if agents.len() != expected {
        return Some(format!("{} agents are known, not {expected}", agents.len()));
    }
    for agent in agents {
        let amount = |column: &str, resource: &str| agent[column][resource].as_f64().unwrap_or(f64::NAN);
        for resource in ["cpus", "mem", "disk"] {
            let (used, rest) = (amount("used", resource), amount("offered", resource) + amount("free", resource));
            let total = amount("total", resource);
            if used != 0.0 || (rest - total).abs() > 1e-9 {
                return Some(format!("agent {}: {resource}: used {used}, offered and free {rest}, total {total}", agent["id"]));
            }
        }
    }
    None
}
