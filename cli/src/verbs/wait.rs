//! `smalti wait`: to the end of a job, with its exit code. Ctrl-C ends only the waiting.

use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Result};
use crate::job::{Link, ReconnectOptions, follow};
use crate::output::{self, OutputOptions};
use crate::views::JobJson;
use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smalti wait $job\n  smalti wait -o json $job")]
pub(crate) struct Wait {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    reconnect: ReconnectOptions,
    #[command(flatten)]
    output: OutputOptions,
    /// The job's id
    job: String,
}

impl Wait {
    pub(crate) async fn run(self) -> Result<Exit> {
        let cluster = Cluster::connect(&self.cluster).await?;
        let end = follow::watch(Link::new(&cluster, self.reconnect).await?, &self.job, |_| ()).await?;
        let code = follow::conclude(&end, None);
        if self.output.is_json() {
            output::json(&JobJson::from(end))?;
        }
        Ok(code)
    }
}
