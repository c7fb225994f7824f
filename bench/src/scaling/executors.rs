//! Throughput with more and more executors: agents of one cpu each, so that each has one executor with one slot of an array.

use super::{Effort, median};
use crate::growth::Series;
use crate::{array, rpc, single};
use anyhow::Result;
use smalti_tests::{AgentConfig, Cluster, Config};

pub(super) fn measure(effort: &Effort, runtime: &tokio::runtime::Runtime) -> Result<Vec<Series>> {
    let (mut items, mut tasks) = (Vec::new(), Vec::new());
    for &executors in effort.executors {
        let agents = vec![AgentConfig { cpus: "1".into(), mem: "2GiB".into(), ..AgentConfig::default() }; executors];
        let cluster = Cluster::start(Config { agents, env: vec![("RUST_LOG".into(), "warn".into())], ..Config::default() })?;
        let digest = rpc::push(&cluster, &cluster.paths.guest("empty")?.display().to_string())?;
        // All agents have fetched and compiled it, and have an executor.
        array::once(&cluster, &digest, 10_000)?;
        let mut of_arrays = Vec::new();
        let mut of_tasks = Vec::new();
        for _ in 0..effort.repetitions {
            of_arrays.push(array::once(&cluster, &digest, effort.executor_items)?);
            of_tasks.push(runtime.block_on(single::rate(&cluster, &rpc::spec(&digest)?, effort.executor_tasks))?);
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let x = executors as f64;
        items.push((x, median(of_arrays)));
        tasks.push((x, median(of_tasks)));
    }
    Ok(vec![
        Series::new("array_items_per_s_by_executors", "executors", "per second", items),
        Series::new("single_tasks_per_s_by_executors", "executors", "per second", tasks),
    ])
}
