//! `smalti kill`: tells a job or task to stop. The guest has its grace period, or the one given here.

use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, Result, SUCCESS};
use crate::time::duration;
use clap::Args;
use smalti_proto::v1::KillRequest;
use smalti_types::DurationMs;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smalti kill $job\n  smalti kill --grace 0s $job && smalti wait $job")]
pub(crate) struct Kill {
    #[command(flatten)]
    cluster: ClusterOptions,
    /// Between telling the guest to stop and stopping it [default: the task's own]
    #[arg(long, value_parser = duration, value_name = "TIME")]
    grace: Option<DurationMs>,
    /// What to stop
    #[arg(value_name = "TASK|JOB")]
    of: String,
}

impl Kill {
    pub(crate) async fn run(self) -> Result<Exit> {
        let mut jobs = Cluster::connect(&self.cluster).await?.jobs().await?;
        let what = format!("killing {}", self.of);
        let request = KillRequest { job_or_task: self.of, grace_ms: self.grace.map(|g| g.0) };
        jobs.kill(request).await.map_err(|s| Failure::rpc(&what, &s))?;
        Ok(SUCCESS)
    }
}
