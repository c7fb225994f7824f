//! Resources come out even: used + offered + free is the total, and everything is given back.

use crate::{Result, cluster, eventually, guest, one_agent};
use anyhow::Context;
use smalti_tests::{AgentConfig, Cluster, Config};

/// Checks every agent's sums; returns whether nothing is used.
fn balanced(c: &Cluster) -> Result<bool> {
    let mut idle = true;
    for agent in c.json(&["agents"])?.as_array().context("a list")? {
        for key in ["cpus", "mem", "disk"] {
            let of = |part: &str| agent[part][key].as_f64().unwrap_or(f64::NAN);
            let sum = of("used") + of("offered") + of("free");
            assert!((sum - of("total")).abs() < 1e-6, "{key}: {agent}");
        }
        idle &= agent["used"]["cpus"] == 0.0 && agent["used"]["mem"] == 0 && agent["used"]["ports"] == serde_json::json!([]);
    }
    Ok(idle)
}

#[test]
fn thousands_of_tasks_leave_nothing_used() -> Result {
    let c = cluster()?;
    let hello = guest(&c, "empty")?;
    let mut jobs = Vec::new();
    for n in 0..40 {
        let job = match n % 4 {
            0 => c.ok(&["submit", "--cpus", "0.3", "--ports", "3", &hello])?,
            1 => c.ok(&["submit", "--cpus", "0.7", "--mem", "100MiB", &hello])?,
            2 => c.ok(&["submit", "--cpus", "0.25", &hello, "--items", "500"])?,
            _ => c.ok(&["submit", "--cpus", "1.5", &guest(&c, "misbehave")?, "--", "trap"])?,
        };
        jobs.push(job.trim().to_owned());
        balanced(&c)?;
    }
    for job in &jobs {
        let code = c.smalti(&["wait", job])?.code;
        assert!(code == 0 || code == 134, "{job}: {code}");
    }
    eventually("everything is given back", || balanced(&c))
}

#[test]
fn ports_and_custom_resources_are_allocated_without_overlap() -> Result {
    let flags = ["--resources", "gpus=2", "--attributes", "zone=eu;rack=r1"].map(String::from).to_vec();
    let agent = AgentConfig { cpus: "4".into(), flags, ..AgentConfig::default() };
    let c = Cluster::start(Config { agents: vec![agent], ..Config::default() })?;
    let agents = c.json(&["agents"])?;
    assert_eq!(agents[0]["attributes"]["zone"], "eu");
    assert_eq!(agents[0]["total"]["gpus"], 2.0, "{agents}");
    let guest = guest(&c, "misbehave")?;
    let jobs: Vec<String> = (0..3)
        .map(|_| Ok(c.ok(&["submit", "--ports", "2", "--cpus", "0.5", &guest, "--", "sleep", "3600000"])?.trim().to_owned()))
        .collect::<Result<_>>()?;
    eventually("all run", || Ok(c.json(&["agents"])?[0]["used"]["cpus"] == 1.5))?;
    let used = c.json(&["agents"])?[0]["used"]["ports"].clone();
    let count: u64 = used.as_array().context("ranges")?.iter().map(|r| r[1].as_u64().unwrap_or(0) - r[0].as_u64().unwrap_or(0) + 1).sum();
    assert_eq!(count, 6, "{used}");
    for job in jobs {
        c.ok(&["kill", "--grace", "0s", &job])?;
    }
    eventually("everything is given back", || balanced(&c))
}

#[test]
fn a_constraint_places_the_task() -> Result {
    let agents = ["eu", "us"].map(|z| AgentConfig { flags: vec!["--attributes".into(), format!("zone={z}")], ..AgentConfig::default() });
    let c = Cluster::start(Config { agents: agents.to_vec(), ..Config::default() })?;
    let us =
        c.json(&["agents"])?.as_array().context("a list")?.iter().find(|a| a["attributes"]["zone"] == "us").context("us")?["id"].clone();
    for _ in 0..3 {
        let job = c.ok(&["submit", "--constraint", "zone=us", &guest(&c, "hello")?])?;
        assert_eq!(c.smalti(&["wait", job.trim()])?.code, 0);
    }
    for task in c.json(&["ps", "--all"])?.as_array().context("a list")? {
        assert_eq!(task["agent_id"], us);
    }
    let done = c.smalti(&["run", "--constraint", "zone=mars", &guest(&c, "hello")?])?;
    assert_eq!(done.code, 125);
    assert!(done.stderr.contains("zone"), "{}", done.stderr);
    Ok(())
}

#[test]
fn slots_are_given_back_when_a_slow_last_item_runs() -> Result {
    let c = one_agent("2")?;
    let guest = guest(&c, "misbehave")?;
    // Two slots, one item: the other slot must be free for the next job.
    let slow = c.ok(&["submit", "--cpus", "1", &guest, "--items", "1", "--", "sleep", "3600000"])?;
    eventually("it runs", || Ok(c.json(&["jobs"])?[0]["state"] == "RUNNING"))?;
    assert_eq!(c.smalti(&["run", "--cpus", "1", &guest, "--", "exit", "0"])?.code, 0);
    c.ok(&["kill", "--grace", "0s", slow.trim()])?;
    Ok(())
}
