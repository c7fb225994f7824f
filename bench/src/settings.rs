//! Under which settings is measured: nothing that was promised is switched off, and whoever reads the figures can see that.
//!
//! What is printed is read from the running cluster, not from what was asked for.

use crate::memory;
use anyhow::{Context, Result};
use smalti_tests::Cluster;
use std::collections::BTreeSet;
use std::path::Path;

/// What holds for the first agent and its executors, in a few lines. A task must have run.
pub(crate) fn of(cluster: &Cluster) -> Result<String> {
    let agents = cluster.json(&["agents"])?;
    let agent = agents.get(0).context("no agent")?;
    let (mut on, mut off) = (BTreeSet::new(), BTreeSet::new());
    layers(agent, &mut on, &mut off);
    let join = |set: BTreeSet<String>| if set.is_empty() { "none".into() } else { set.into_iter().collect::<Vec<_>>().join(", ") };
    let dir = cluster.dir();
    let open = |pid: u32, part: &str| if has_open(pid, part) { "on" } else { "OFF" };
    let agent_pid = cluster.agents.first().context("no agent")?.pid();
    let scheduler = cluster.scheduler.as_ref().map_or("none", |s| open(s.pid(), "/scheduler/"));
    Ok(format!(
        "settings: {} agent(s), {}; layers on: {}; layers off: {}\nsettings: checkpoint of the agent {}, registry of the master {}, store of the \
         scheduler {scheduler}, outputs kept in {} ({} written so far), updates acknowledged by their handlers; executors: {}",
        cluster.agents.len(),
        resources(agent),
        join(on),
        join(off),
        open(agent_pid, "/checkpoint/"),
        open(cluster.master.pid(), "/master/"),
        dir.join("agent-0/sandboxes").display(),
        size(&dir.join("agent-0/sandboxes")),
        memory::workers(cluster).len(),
    ))
}

/// `name: on …` and `name: off …` of the agent and of its executors, wherever they stand.
fn layers(value: &serde_json::Value, on: &mut BTreeSet<String>, off: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (name, value) in map {
                match value.as_str() {
                    Some(state) if is(state, "on") => drop(on.insert(name.clone())),
                    Some(state) if is(state, "off") => drop(off.insert(format!("{name} ({state})"))),
                    _ => layers(value, on, off),
                }
            }
        }
        serde_json::Value::Array(all) => all.iter().for_each(|v| layers(v, on, off)),
        _ => {}
    }
}

/// `on`, `on: pagemap_scan`, `on (v1)`.
fn is(state: &str, word: &str) -> bool {
    state.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', ':']))
}

fn resources(agent: &serde_json::Value) -> String {
    agent.get("total").map(ToString::to_string).unwrap_or_default()
}

/// Whether a process has a file open whose path has this in it.
fn has_open(pid: u32, part: &str) -> bool {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.filter_map(|f| std::fs::read_link(f.path()).ok()).any(|p| p.to_string_lossy().contains(part))
}

/// Bytes of all files below.
fn size(dir: &Path) -> String {
    fn sum(dir: &Path) -> u64 {
        let all = std::fs::read_dir(dir).into_iter().flatten().flatten();
        all.map(|e| if e.path().is_dir() { sum(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) }).sum()
    }
    format!("{} bytes", sum(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_found_wherever_they_stand() {
        let value = serde_json::json!({"isolation": {"cgroup_cpu": "on (v1)"}, "executors": [{"layers": {"landlock": "off: old kernel"}}]});
        let (mut on, mut off) = (BTreeSet::new(), BTreeSet::new());
        layers(&value, &mut on, &mut off);
        assert_eq!(
            (on.into_iter().collect::<Vec<_>>(), off.into_iter().collect::<Vec<_>>()),
            (vec!["cgroup_cpu".to_owned()], vec!["landlock (off: old kernel)".to_owned()])
        );
    }
}
