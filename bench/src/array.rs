//! Task arrays end to end: from submission to the terminal state of the job, divided by the items.

use crate::Effort;
use crate::figures::Figures;
use anyhow::{Result, bail};
use smalti_tests::Cluster;
use std::time::Instant;

/// Measures an array of this many items; the figure gets this name.
pub(crate) fn measure(cluster: &Cluster, digest: &str, name: &str, n: u64, effort: Effort, figures: &mut Figures) -> Result<()> {
    let rates = (0..effort.repetitions).map(|_| once(cluster, digest, n)).collect::<Result<_>>()?;
    figures.add(name, rates);
    Ok(())
}

/// Items per second of one array.
pub(crate) fn once(cluster: &Cluster, digest: &str, n: u64) -> Result<f64> {
    let items = n.to_string();
    let start = Instant::now();
    let job = cluster.ok(&["submit", "--cpus", "1", digest, "--items", &items])?;
    let done = cluster.smalti(&["wait", job.trim()])?;
    let seconds = start.elapsed().as_secs_f64();
    if done.code != 0 {
        bail!("the array ended with {}: {}", done.code, done.stderr);
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    Ok(n as f64 / seconds)
}
