//! The floor: the same compiled guest, engine settings and limits, instantiated, run and dropped in a plain loop.

use crate::Effort;
use crate::figures::Figures;
use anyhow::{Context, Result, bail};
use smalti_tests::{Cluster, Finished};
use std::process::Command;
use std::time::Duration;

pub(crate) fn measure(cluster: &Cluster, effort: Effort, figures: &mut Figures) -> Result<()> {
    // The agent's own compiled file: exactly what its executor runs.
    let dir = cluster.dir().join("agent-0/compiled");
    let code = std::fs::read_dir(&dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .filter_map(|e| Some(e.ok()?.path().join("code")))
        .find(|p| p.is_file())
        .with_context(|| format!("no compiled file in {}", dir.display()))?;
    // As many threads as measured best.
    let mut best: Vec<f64> = Vec::new();
    for threads in ["1", "2"] {
        let mut rates = Vec::new();
        for _ in 0..effort.repetitions {
            let mut c = Command::new(cluster.paths.executor());
            c.args(["floor", "--threads", threads, "--seconds", &effort.floor_seconds.to_string(), "--code"]).arg(&code);
            let done = Finished::of(c, b"", Duration::from_secs(60))?;
            if done.code != 0 {
                bail!("the floor failed: {}", done.stderr);
            }
            let value: serde_json::Value =
                serde_json::from_str(&done.stdout).with_context(|| format!("the floor printed {:?}", done.stdout))?;
            rates.push(value["items_per_s"].as_f64().context("items_per_s")?);
            if rates.len() == 1 {
                println!("floor with {threads} threads: allocator {}, reset {}", value["allocator"], value["reset"]);
            }
        }
        let median = |v: &[f64]| {
            let mut v = v.to_vec();
            crate::figures::percentile(&mut v, 0.5)
        };
        if best.is_empty() || median(&rates) > median(&best) {
            best = rates;
        }
    }
    figures.add("floor_items_per_s", best);
    Ok(())
}
