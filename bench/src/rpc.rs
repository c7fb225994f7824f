//! One empty call on loopback, and one warm task from the job API call to its terminal status at the caller.

use crate::Effort;
use crate::figures::{Figures, percentile};
use anyhow::{Context, Result, bail};
use smalti_proto::v1;
use smalti_tests::Cluster;
use smalti_types::{BundleRef, Bytes, Digest, Isolation, MilliCpus, Resources, TaskSpec};
use std::time::Instant;
use tonic::transport::Channel;

/// Pushes the guest; returns its digest as text.
pub(crate) fn push(cluster: &Cluster, guest: &str) -> Result<String> {
    let out = cluster.ok(&["bundle", "push", guest])?;
    out.split_whitespace().find(|w| w.starts_with("blake3:")).map(str::to_owned).with_context(|| format!("no digest in {out:?}"))
}

/// What every task of the benchmarks runs.
pub(crate) fn spec(digest: &str) -> Result<TaskSpec> {
    Ok(TaskSpec::new(BundleRef { digest: digest.parse::<Digest>()?, uri: None }))
}

/// What every task of the benchmarks takes.
pub(crate) fn resources() -> Resources {
    Resources::new(MilliCpus(100), Bytes::mib(16))
}

async fn connect(address: &str) -> Result<Channel> {
    let endpoint = Channel::from_shared(format!("http://{address}")).with_context(|| format!("the address {address}"))?;
    endpoint.tcp_nodelay(true).connect().await.with_context(|| format!("connecting to {address}"))
}

type Operator = v1::operator_service_client::OperatorServiceClient<Channel>;
pub(crate) type Jobs = v1::jobs_client::JobsClient<Channel>;

/// Clients of the master and of the batch scheduler.
pub(crate) async fn clients(cluster: &Cluster) -> Result<(Operator, Jobs)> {
    let mut operator = Operator::new(connect(&cluster.address).await?);
    let jobs_at =
        operator.cluster(v1::Empty {}).await?.into_inner().services.remove(v1::jobs_server::SERVICE_NAME).context("no batch scheduler")?;
    Ok((operator, Jobs::new(connect(&jobs_at).await?)))
}

/// Tasks of class `instance`, one at a time, beside an empty call.
pub(crate) async fn warm(cluster: &Cluster, digest: &str, effort: Effort, figures: &mut Figures) -> Result<()> {
    let (mut operator, mut jobs) = clients(cluster).await?;
    let (mut rtt, mut warm50, mut warm99) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.repetitions {
        let mut samples = Vec::new();
        for _ in 0..effort.round_trips {
            let start = Instant::now();
            operator.cluster(v1::Empty {}).await?;
            samples.push(start.elapsed().as_secs_f64() * 1e6);
        }
        rtt.push(percentile(&mut samples, 0.5));
        let mut samples = Vec::new();
        for n in 0..effort.round_trips {
            samples.push(one_task(&mut jobs, digest, n, Isolation::Instance).await?);
        }
        warm50.push(percentile(&mut samples, 0.5));
        warm99.push(percentile(&mut samples, 0.99));
    }
    figures.add("grpc_rtt_p50_us", rtt);
    figures.add("warm_task_p50_us", warm50);
    figures.add("warm_task_p99_us", warm99);
    Ok(())
}

/// Microseconds from the submission to the terminal state.
pub(crate) async fn one_task(jobs: &mut Jobs, digest: &str, n: usize, isolation: Isolation) -> Result<f64> {
    let single = v1::SingleJob {
        spec: Some(TaskSpec { isolation, ..spec(digest)? }.into()),
        resources: Some(resources().into()),
        policy: Some(v1::Policy::default()),
        ports: 0,
    };
    let request = v1::SubmitRequest {
        name: format!("warm-{n}"),
        role: "default".into(),
        kind: Some(v1::submit_request::Kind::Single(single)),
        request_id: String::new(),
        output_store: None,
    };
    let start = Instant::now();
    let job = jobs.submit(request).await?.into_inner().job;
    let mut changes = jobs.watch(v1::JobRef { job: job.clone() }).await?.into_inner();
    while let Some(view) = changes.message().await? {
        match view.state.as_str() {
            "FINISHED" => return Ok(start.elapsed().as_secs_f64() * 1e6),
            "FAILED" | "KILLED" => bail!("job {job} ended {}: {}", view.state, view.message),
            _ => {}
        }
    }
    bail!("the watch of job {job} ended before the job")
}
