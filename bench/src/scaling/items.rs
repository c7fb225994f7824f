//! Arrays from a thousand items to a million: throughput, and the most memory that each role has meanwhile.

use super::{Effort, float, median};
use crate::growth::Series;
use crate::{array, memory, rpc};
use anyhow::{Context, Result};
use smalti_tests::{AgentConfig, Cluster, Config};

const ROLES: [&str; 4] = ["scheduler", "master", "agent", "executor"];

pub(super) fn measure(effort: &Effort) -> Result<Vec<Series>> {
    let mut rates = Vec::new();
    let mut peaks: [Vec<(f64, f64)>; 4] = Default::default();
    for &items in effort.items {
        // A fresh cluster for each length: what an earlier array left is not counted.
        let agent = AgentConfig { cpus: "2".into(), mem: "4GiB".into(), ..AgentConfig::default() };
        let cluster = Cluster::start(Config { agents: vec![agent], env: vec![("RUST_LOG".into(), "warn".into())], ..Config::default() })?;
        let digest = rpc::push(&cluster, &cluster.paths.guest("empty")?.display().to_string())?;
        array::once(&cluster, &digest, 100)?;
        let mut samples = Vec::new();
        for _ in 0..effort.repetitions {
            samples.push(array::once(&cluster, &digest, items)?);
        }
        rates.push((float(items), median(samples)));
        for (peak, pid) in peaks.iter_mut().zip(pids(&cluster)?) {
            peak.push((float(items), memory::peak(pid)?));
        }
    }
    let mut series = vec![Series::new("array_items_per_s_by_items", "items", "per second", rates)];
    for (role, points) in ROLES.iter().zip(peaks) {
        series.push(Series::new(&format!("{role}_peak_bytes_by_items"), "items", "bytes", points));
    }
    Ok(series)
}

/// In the order of [`ROLES`].
fn pids(cluster: &Cluster) -> Result<[u32; 4]> {
    let scheduler = cluster.scheduler.as_ref().context("no scheduler")?.pid();
    let agent = cluster.agents.first().context("no agent")?.pid();
    let executor = memory::workers(cluster).first().copied().context("no executor")?;
    Ok([scheduler, cluster.master.pid(), agent, executor])
}
