//! `smalti logs`: what a task, an item or a whole job wrote.

use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, Result, SUCCESS};
use crate::job::output::{self, Stopped};
use crate::job::sink::PassThrough;
use crate::job::{Link, ReconnectOptions};
use clap::Args;
use smalti_proto::v1::{OutputRequest, OutputStream};
use tokio::sync::watch;

#[derive(Debug, Args)]
#[command(
    after_help = "A job's stdout is its task's, its items' in item order, or with a reduce the reduce's.\n\nExamples:\n  smalti logs $job\n  smalti logs -f --tail 20 $job\n  smalti logs --stderr --item 7 $job"
)]
pub(crate) struct Logs {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    reconnect: ReconnectOptions,
    /// Go on until the task has ended
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// stderr instead of stdout
    #[arg(long)]
    stderr: bool,
    /// Only this item's
    #[arg(long, value_name = "I")]
    item: Option<u64>,
    /// Whose output
    #[arg(value_name = "TASK|JOB")]
    of: String,
}

impl Logs {
    pub(crate) async fn run(self) -> Result<Exit> {
        let cluster = Cluster::connect(&self.cluster).await?;
        let link = Link::new(&cluster, self.reconnect).await?;
        let stream = if self.stderr { OutputStream::Stderr } else { OutputStream::Stdout };
        let request =
            OutputRequest { job_or_task: self.of, stream: stream.into(), item: self.item, follow: self.follow, tail_lines: self.tail };
        // Nobody tells us when the job ends: the stream's own end does. The sender lives as long as the reading.
        let (_never, ended) = watch::channel(false);
        match output::read(link, request, PassThrough::all_to_stdout(), ended).await.1 {
            Ok(()) => Ok(SUCCESS),
            Err(Stopped::Sink(error)) => Err(Failure::stdout(&error)),
            Err(Stopped::Lost(failure)) => Err(failure),
        }
    }
}
