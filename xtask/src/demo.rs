//! The demo: a word count over a real text on a cluster of real processes, checked against an independent count.

use crate::build;
use anyhow::{Context, Result, bail};
use smalti_tests::{AgentConfig, Cluster, Config, workspace_root};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// Small enough that both agents get several items of the text in the repository.
const SPLIT: &str = "128KiB";
/// How many words are shown.
const SHOWN: usize = 20;

pub(crate) fn run(text: Option<PathBuf>) -> Result<()> {
    build::everything()?;
    let text = text.unwrap_or_else(|| workspace_root().join("wasm-examples/data/kjv.txt"));
    let text = text.canonicalize().with_context(|| format!("the text {}", text.display()))?;
    let bytes = std::fs::read(&text).with_context(|| format!("reading {}", text.display()))?;

    println!("starting a master, a scheduler and two agents");
    let agent = AgentConfig { cpus: "1".into(), ..AgentConfig::default() };
    let cluster = Cluster::start(Config { agents: vec![agent.clone(), agent], ..Config::default() })?;
    say_isolation(&cluster)?;

    let guest = cluster.paths.guest("wordcount")?.display().to_string();
    let input = text.display().to_string();
    println!("counting the words of {input} ({} bytes)", bytes.len());
    let start = Instant::now();
    let args = ["map", &guest, "--inputs", &input, "--split", SPLIT, "--reduce", &guest, "--reduce-arg", "--merge"];
    let output = cluster.ok(&args)?;
    let took = start.elapsed();

    for line in output.lines().take(SHOWN) {
        println!("{line}");
    }
    let by_agent = items_by_agent(&cluster)?;
    for (agent, items) in &by_agent {
        println!("agent {agent} ran {items} items");
    }
    println!("took {:.3} s from the command to the counts", took.as_secs_f64());
    check(&output, &bytes)?;
    println!("the counts are right");
    Ok(())
}

/// Which limits the kernel enforces, from the agents' own reports.
fn say_isolation(cluster: &Cluster) -> Result<()> {
    for agent in cluster.json(&["agents"])?.as_array().context("`smalti agents` printed no list")? {
        let layers = agent["isolation"].as_object().context("an agent does not report its isolation")?;
        let said: Vec<String> = layers.iter().map(|(layer, state)| format!("{layer} {}", state.as_str().unwrap_or("?"))).collect();
        println!("agent {}: {}", agent["id"].as_str().unwrap_or("?"), said.join(", "));
    }
    Ok(())
}

fn items_by_agent(cluster: &Cluster) -> Result<BTreeMap<String, u64>> {
    let jobs = cluster.json(&["jobs", "--all"])?;
    let job = jobs.as_array().and_then(|j| j.first()).context("`smalti jobs` does not know the job")?;
    let agents = job["items_by_agent"].as_object().context("the job does not say which agents ran it")?;
    Ok(agents.iter().map(|(agent, n)| (agent.clone(), n.as_u64().unwrap_or(0))).collect())
}

/// Counts the words again, here, in the plainest way, and compares line by line.
fn check(output: &str, text: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(text);
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word).or_default() += 1;
    }
    let mut expected: Vec<_> = counts.into_iter().collect();
    expected.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let mut lines = output.lines();
    for (word, n) in expected {
        let (want, got) = (format!("{word}\t{n}"), lines.next().unwrap_or("nothing"));
        if want != got {
            bail!("the counts are wrong: expected {want:?}, the cluster printed {got:?}");
        }
    }
    match lines.next() {
        Some(extra) => bail!("the counts are wrong: the cluster printed {extra:?} beyond the last word"),
        None => Ok(()),
    }
}
