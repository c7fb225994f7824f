//! The floor: the same compiled guest, engine settings and limits, instantiated, run and dropped in a plain loop.

use crate::Effort;
use crate::figures::{Figures, percentile};
use anyhow::{Context, Result, bail};
use smalti_tests::{Cluster, Finished};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Processes and threads of each: the best counts.
const SHAPES: [(usize, u32); 3] = [(1, 1), (1, 2), (2, 1)];

/// Measures the guest with this digest; the figure gets this name.
pub(crate) fn measure(cluster: &Cluster, digest: &str, name: &str, effort: Effort, figures: &mut Figures) -> Result<()> {
    let code = code(cluster, digest)?;
    let mut best: Vec<f64> = Vec::new();
    for (processes, threads) in SHAPES {
        let mut rates = Vec::new();
        for _ in 0..effort.repetitions {
            let (rate, how) = together(cluster, &code, (processes, threads), effort.floor_seconds)?;
            rates.push(rate);
            if rates.len() == 1 {
                println!("{name}: {processes} processes with {threads} threads each: {rate:.0}, {how}");
            }
        }
        let median = |v: &[f64]| percentile(&mut v.to_vec(), 0.5);
        if best.is_empty() || median(&rates) > median(&best) {
            best = rates;
        }
    }
    figures.add(name, best);
    Ok(())
}

/// The agent's own compiled file: exactly what its executor runs.
fn code(cluster: &Cluster, digest: &str) -> Result<PathBuf> {
    let dir = cluster.dir().join("agent-0/compiled");
    let hex = digest.trim_start_matches("blake3:");
    std::fs::read_dir(&dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().contains(hex)))
        .map(|path| path.join("code"))
        .find(|p| p.is_file())
        .with_context(|| format!("no compiled file of {digest} in {}", dir.display()))
}

/// The sum of what processes reach that run at the same time, and how they reset memory.
fn together(cluster: &Cluster, code: &Path, (processes, threads): (usize, u32), seconds: f64) -> Result<(f64, String)> {
    let executor = cluster.paths.executor();
    let run = || -> Result<(f64, String)> {
        let mut c = Command::new(&executor);
        c.args(["floor", "--threads", &threads.to_string(), "--seconds", &seconds.to_string(), "--code"]).arg(code);
        let done = Finished::of(c, b"", Duration::from_secs(60))?;
        if done.code != 0 {
            bail!("the floor failed: {}", done.stderr);
        }
        let value: serde_json::Value =
            serde_json::from_str(&done.stdout).with_context(|| format!("the floor printed {:?}", done.stdout))?;
        let how = format!("allocator {}, reset {}", value["allocator"], value["reset"]);
        Ok((value["items_per_s"].as_f64().context("items_per_s")?, how))
    };
    let all: Vec<Result<(f64, String)>> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..processes).map(|_| scope.spawn(run)).collect();
        started.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))).collect()
    });
    let mut sum = (0.0, String::new());
    for one in all {
        let (rate, how) = one?;
        sum = (sum.0 + rate, how);
    }
    Ok(sum)
}
