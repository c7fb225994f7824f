//! How the figures grow: with executors, items, agents and frameworks.
//!
//! Each series is measured on clusters of its own, has an exponent (see `growth`), and becomes a picture. Takes minutes, and is therefore
//! measured only when asked for.

mod agents;
mod executors;
mod frameworks;
mod items;

use crate::growth::Series;
use crate::svg::{Line, plot};
use anyhow::{Context, Result};
use std::path::Path;

pub(crate) use agents::footprint;

/// How far the series go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    repetitions: usize,
    executors: &'static [usize],
    executor_items: u64,
    executor_tasks: u64,
    items: &'static [u64],
    agents: &'static [u64],
    /// Seconds in which the master's cpu time is watched: some heartbeats of each agent.
    watch_seconds: f64,
    frameworks: &'static [u64],
}

pub(crate) const FULL: Effort = Effort {
    repetitions: 3,
    executors: &[1, 2, 4, 8],
    executor_items: 200_000,
    executor_tasks: 10_000,
    items: &[1_000, 10_000, 100_000, 1_000_000],
    agents: &[10, 100, 1_000, 5_000, 10_000],
    watch_seconds: 15.0,
    frameworks: &[1, 10, 100, 1_000],
};
pub(crate) const QUICK: Effort = Effort {
    repetitions: 1,
    executors: &[1, 2],
    executor_items: 50_000,
    executor_tasks: 2_000,
    items: &[1_000, 10_000, 100_000],
    agents: &[10, 100, 1_000],
    watch_seconds: 5.0,
    frameworks: &[1, 10, 100, 1_000],
};

/// Pictures: file name, title, and the series in it, which have one unit.
const PICTURES: [(&str, &str, &[&str]); 6] = [
    (
        "executors",
        "Throughput by executors (one cpu each, two cores)",
        &["array_items_per_s_by_executors", "single_tasks_per_s_by_executors"],
    ),
    ("items", "Throughput by length of the array", &["array_items_per_s_by_items"]),
    (
        "items-memory",
        "Most memory by length of the array",
        &["scheduler_peak_bytes_by_items", "master_peak_bytes_by_items", "agent_peak_bytes_by_items", "executor_peak_bytes_by_items"],
    ),
    ("agents-time", "Time by agents", &["registration_ms_by_agents", "all_offers_ms_by_agents"]),
    ("agents-memory", "Memory of the master by agents", &["master_bytes_by_agents"]),
    ("frameworks", "Allocation by frameworks (10,000 agents)", &["alloc_change_ms_by_frameworks", "alloc_cycle_ms_by_frameworks"]),
];

/// Measures all series.
pub(crate) fn measure(effort: &Effort, runtime: &tokio::runtime::Runtime) -> Result<Vec<Series>> {
    let mut series = frameworks::measure(effort)?;
    series.extend(executors::measure(effort, runtime)?);
    series.extend(items::measure(effort)?);
    series.extend(runtime.block_on(agents::measure(effort))?);
    println!("how figures grow:");
    for one in &series {
        println!("{}", one.line());
    }
    Ok(series)
}

/// Writes the pictures into a directory.
pub(crate) fn draw(series: &[Series], dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    for (file, title, names) in PICTURES {
        let shown: Vec<&Series> = names.iter().filter_map(|name| series.iter().find(|s| s.name == *name)).collect();
        let Some(first) = shown.first() else { continue };
        let label = |s: &Series| {
            let what = s.name.split("_by_").next().unwrap_or(&s.name).replace('_', " ");
            s.exponent.map_or_else(|| what.clone(), |e| format!("{what} (exponent {e:.2})"))
        };
        let lines: Vec<Line<'_>> = shown.iter().map(|s| Line { label: label(s), points: &s.points }).collect();
        let path = dir.join(format!("{file}.svg"));
        std::fs::write(&path, plot(title, &first.x, &first.y, &lines)).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The middle one.
fn median(mut samples: Vec<f64>) -> f64 {
    crate::figures::percentile(&mut samples, 0.5)
}

#[expect(clippy::cast_precision_loss, reason = "sizes of series")]
const fn float(n: u64) -> f64 {
    n as f64
}
