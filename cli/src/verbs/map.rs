//! `smalti map`: a task array, and optionally a reduce over its output.

use super::run::print_id;
use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, Result};
use crate::job::options::TaskOptions;
use crate::job::submit::MapOptions;
use crate::job::{Link, ReconnectOptions, follow, submit};
use crate::output::OutputOptions;
use clap::{ArgGroup, Args};
use std::ffi::OsString;

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("what").args(["items", "inputs"]).required(true).multiple(true),
    override_usage = "smalti map [OPTIONS] BUNDLE --items N | --inputs URI|FILE|DIR|GLOB… [--reduce BUNDLE] [-- ARGS…]",
    after_help = "stdout is the items' stdout in item order, or with --reduce the reduce's; stderr has the\nitem before each line. The exit code is that of the lowest failed item.\n\nExamples:\n  smalti map pi.wasm --items 100 --reduce sum.wasm\n  smalti map wordcount.wasm --inputs texts/ --reduce wordcount.wasm --reduce-arg --merge\n  smalti map train.wasm --inputs 's3://bucket/points/*.csv' --rounds 10 --reduce step.wasm\n  smalti map wordcount.wasm --inputs 's3://bucket/logs/2026-*/*.gz' --reduce wordcount.wasm --reduce-arg --merge\n  smalti map check.wasm --items 1000 --max-parallel 8 --fail-fast -- --strict"
)]
pub(crate) struct Map {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    reconnect: ReconnectOptions,
    #[command(flatten)]
    pub(crate) map: MapOptions,
    #[command(flatten)]
    task: TaskOptions,
    /// Print the job's id and leave
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    output: OutputOptions,
    /// What each item runs
    bundle: OsString,
    /// The guest's arguments
    #[arg(last = true)]
    pub(crate) args: Vec<String>,
}

impl Map {
    pub(crate) async fn run(self) -> Result<Exit> {
        let outputs = self.task.outputs()?;
        if self.detach && outputs.collect.is_some() {
            return Err(Failure::new("--collect DIR needs this process to stay; leave --detach out, or name a store with --output-store"));
        }
        self.task.check_supported()?;
        let cluster = Cluster::connect(&self.cluster).await?;
        let mut link = Link::new(&cluster, self.reconnect).await?;
        let bundles = submit::bundles(&cluster, &mut link, &self.task).await?;
        let request = submit::map(&bundles, &self.task, &self.map, &self.bundle, &self.args).await?;
        if self.detach {
            let job = submit::send(&mut link, request).await?;
            return print_id(&self.output, &job);
        }
        follow::submit_and_follow(link, request, &self.output, outputs.collect.as_deref()).await
    }
}
