//! `smalti logs`: what a task, an item or a whole job wrote.

use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, Result, SUCCESS};
use crate::job::output::{self, Stopped};
use crate::job::sink::PassThrough;
use crate::job::{Link, ReconnectOptions};
use crate::output::printable;
use crate::terminal;
use clap::Args;
use smalti_proto::v1::{OutputRequest, OutputStream, read_reply};
use std::time::Duration;
use tokio::sync::watch;

/// How long a hint may take: what was asked for has been answered.
const HINT_WITHIN: Duration = Duration::from_secs(2);

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
        let request = OutputRequest {
            job_or_task: self.of.clone(),
            stream: stream.into(),
            item: self.item,
            follow: self.follow,
            tail_lines: self.tail,
        };
        // Nobody tells us when the job ends: the stream's own end does. The sender lives as long as the reading.
        let (_never, ended) = watch::channel(false);
        let again = link.quiet_clone();
        let (sink, result) = output::read(link, request.clone(), PassThrough::all_to_stdout(), ended).await;
        match result {
            Ok(()) => {
                if sink.is_empty() && !self.stderr && self.tail != Some(0) {
                    hint(again, request).await;
                }
                Ok(SUCCESS)
            }
            Err(Stopped::Sink(error)) => Err(Failure::stdout(&error)),
            Err(Stopped::Lost(failure)) => Err(failure),
        }
    }
}

/// Nothing was written to stdout: says so where there is something on stderr. What cannot be found out is left unsaid.
async fn hint(link: Link, request: OutputRequest) {
    let request = OutputRequest { stream: OutputStream::Stderr.into(), follow: false, tail_lines: Some(1), ..request };
    let Ok(stream) = link.jobs().output(request.clone()).await else { return };
    let mut stream = stream.into_inner();
    while let Ok(Ok(Some(reply))) = tokio::time::timeout(HINT_WITHIN, stream.message()).await {
        if matches!(reply.message, Some(read_reply::Message::Chunk(chunk)) if !chunk.data.is_empty()) {
            let item = request.item.map_or_else(String::new, |item| format!("--item {item} "));
            let of = printable(&request.job_or_task);
            return terminal::note(&format!(
                "{of} wrote nothing to stdout; `smalti logs --stderr {item}{of}` shows what it wrote to stderr"
            ));
        }
    }
}
