//! Class `process` beside bare processes: one launch at a time beside a `posix_spawn` of `/bin/true`, and launches in a row beside
//! processes that get fresh namespaces and control groups and do nothing.

use crate::Effort;
use crate::figures::{Figures, percentile};
use crate::rpc::{self, Jobs};
use crate::single;
use crate::spawn;
use anyhow::{Context, Result};
use smalti_tests::Cluster;
use smalti_types::{Isolation, TaskSpec};
use std::time::{Duration, Instant};

/// Time in which the pool is filled again between single launches.
const POOL_PAUSE: Duration = Duration::from_millis(60);

pub(crate) async fn measure(cluster: &Cluster, digest: &str, effort: Effort, figures: &mut Figures) -> Result<()> {
    let (_, mut jobs) = rpc::clients(cluster).await?;
    launches(&mut jobs, digest, effort, figures).await?;
    let spec = TaskSpec { isolation: Isolation::Process, ..rpc::spec(digest)? };
    let (mut rates, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..effort.repetitions {
        floors.push(tokio::task::spawn_blocking(move || spawn::confined_per_s(effort.confined_spawns)).await??);
        rates.push(single::rate(cluster, &spec, effort.process_tasks).await?);
    }
    figures.add("confined_spawns_per_s", floors);
    figures.add("process_launches_per_s", rates);
    figures.ratio("process_launch_p50_spawns", "process_launch_p50_us", "spawn_p50_us");
    figures.ratio("process_launches_ratio", "process_launches_per_s", "confined_spawns_per_s");
    Ok(())
}

/// One at a time, with an executor ready, each beside a `/bin/true` of the same moment.
async fn launches(jobs: &mut Jobs, digest: &str, effort: Effort, figures: &mut Figures) -> Result<()> {
    rpc::one_task(jobs, digest, 0, Isolation::Process).await?; // the pool is filled with the first use
    let (mut p50, mut p99, mut spawn50) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.repetitions {
        let (mut samples, mut spawns) = (Vec::new(), Vec::new());
        for n in 0..effort.process_launches {
            tokio::time::sleep(POOL_PAUSE).await;
            samples.push(rpc::one_task(jobs, digest, n, Isolation::Process).await?);
            let start = Instant::now();
            std::process::Command::new("/bin/true").status().context("running /bin/true")?;
            spawns.push(start.elapsed().as_secs_f64() * 1e6);
        }
        p50.push(percentile(&mut samples, 0.5));
        p99.push(percentile(&mut samples, 0.99));
        spawn50.push(percentile(&mut spawns, 0.5));
    }
    figures.add("spawn_p50_us", spawn50);
    figures.add("process_launch_p50_us", p50);
    figures.add("process_launch_p99_us", p99);
    Ok(())
}
