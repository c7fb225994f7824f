//! `smalti jobs`: what was submitted, newest first as the scheduler gives it.

use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, Result, SUCCESS};
use crate::output::{self, OutputOptions, or_dash};
use crate::time::brief;
use crate::views::JobJson;
use clap::Args;
use smalti_proto::v1::ListJobsRequest;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smalti jobs\n  smalti jobs --active -o json")]
pub(crate) struct ListJobs {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    output: OutputOptions,
    /// Only jobs that have not ended
    #[arg(long, conflicts_with = "all")]
    active: bool,
    /// Every job that the scheduler remembers, however many
    #[arg(long)]
    all: bool,
    /// At most this many
    #[arg(long, default_value_t = 100, value_name = "N", conflicts_with = "all", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

impl ListJobs {
    pub(crate) async fn run(self) -> Result<Exit> {
        let mut jobs = Cluster::connect(&self.cluster).await?.jobs().await?;
        let limit = if self.all { u32::MAX } else { self.limit };
        let request = ListJobsRequest { all: !self.active, limit };
        let list = jobs.list_jobs(request).await.map_err(|s| Failure::rpc("listing jobs", &s))?.into_inner();
        let views: Vec<_> = list.jobs.into_iter().map(JobJson::from).collect();
        output::list(&self.output, &views, &["JOB", "NAME", "KIND", "STATE", "ITEMS", "EXIT", "TIME", "WHY"], row)?;
        Ok(SUCCESS)
    }
}

fn row(job: &JobJson) -> Vec<String> {
    let items = match (job.items_total, job.items_failed) {
        _ if job.kind != "map" => "-".to_owned(),
        (total, 0) => format!("{}/{total}", job.items_finished),
        (total, failed) => format!("{}/{total}, {failed} failed", job.items_finished),
    };
    let why = [job.reason.as_str(), job.message.as_str()].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(": ");
    vec![
        job.job_id.clone(),
        job.name.clone(),
        job.kind.clone(),
        job.state.clone(),
        items,
        job.exit_code.map_or_else(|| "-".into(), |c| c.to_string()),
        brief(job.elapsed_us),
        or_dash(&why),
    ]
}
