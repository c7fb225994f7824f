//! `smalti submit`: as `run` or `map`, without staying. It is a map when items are named.

use super::run::print_id;
use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, Result};
use crate::job::options::TaskOptions;
use crate::job::submit::MapOptions;
use crate::job::{Link, ReconnectOptions, submit};
use crate::output::OutputOptions;
use clap::Args;
use std::ffi::OsString;

#[derive(Debug, Args)]
#[command(
    override_usage = "smalti submit [OPTIONS] BUNDLE [--items N | --inputs URI|FILE|DIR|GLOB…] [-- ARGS…]",
    after_help = "Prints the job's id. The job goes on without this process; `smalti wait` exits as\n`smalti run` would have.\n\nExamples:\n  smalti submit hello.wasm -- world\n  job=$(smalti submit count.wasm --inputs texts/) && smalti wait $job && smalti logs $job"
)]
pub(crate) struct Submit {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    reconnect: ReconnectOptions,
    #[command(flatten)]
    pub(crate) map: MapOptions,
    #[command(flatten)]
    task: TaskOptions,
    #[command(flatten)]
    output: OutputOptions,
    /// What to run
    bundle: OsString,
    /// The guest's arguments
    #[arg(last = true)]
    args: Vec<String>,
}

impl Submit {
    pub(crate) async fn run(self) -> Result<Exit> {
        self.task.check_supported()?;
        if self.task.outputs()?.collect.is_some() {
            return Err(Failure::new(
                "--collect DIR needs a process that stays: use `smalti run` or `map`, or name a store with --output-store",
            ));
        }
        if !self.map.is_map() && (self.map.reduce.is_some() || self.map.rounds > 1 || self.map.state.is_some()) {
            return Err(Failure::new("--reduce, --rounds and --state belong to a map: name its items with --items or --inputs"));
        }
        let cluster = Cluster::connect(&self.cluster).await?;
        let mut link = Link::new(&cluster, self.reconnect).await?;
        let bundles = submit::bundles(&cluster, &mut link, &self.task).await?;
        let request = if self.map.is_map() {
            submit::map(&bundles, &self.task, &self.map, &self.bundle, &self.args).await?
        } else {
            submit::single(&bundles, &self.task, &self.bundle, &self.args).await?
        };
        let job = submit::send(&mut link, request).await?;
        print_id(&self.output, &job)
    }
}
