//! `smalti run`: one task, as if it ran here. Also a Cargo runner: `CARGO_TARGET_WASM32_WASIP1_RUNNER="smalti run"`.

use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, Result, SUCCESS};
use crate::job::options::TaskOptions;
use crate::job::{Link, ReconnectOptions, follow, submit};
use crate::output::OutputOptions;
use clap::Args;
use serde_json::json;
use std::ffi::{OsStr, OsString};

#[derive(Debug, Args)]
#[command(
    override_usage = "smalti run [OPTIONS] BUNDLE [-- ARGS…]",
    after_help = "BUNDLE is a file of this machine (.wasm, .wat, .tar, .tar.gz, .tar.zst), blake3:<hex>,\nor a URI (http, https, s3, file), which #blake3=<hex> pins.\nOptions stand before it: everything after it is the guest's.\n\nExamples:\n  smalti run hello.wasm -- world\n  smalti run --cpus 1 --mem 256MiB --timeout 30s count.wasm < words.txt\n  smalti run --env LANG=C --input /data/model.bin=model.bin s3://bucket/app.wasm\n  CARGO_TARGET_WASM32_WASIP1_RUNNER=\"smalti run\" cargo run --target wasm32-wasip1"
)]
pub(crate) struct Run {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    reconnect: ReconnectOptions,
    #[command(flatten)]
    task: TaskOptions,
    /// Print the job's id and leave
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    output: OutputOptions,
    /// What to run, and the guest's arguments
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["BUNDLE", "ARGS"])]
    command: Vec<OsString>,
}

impl Run {
    pub(crate) async fn run(self) -> Result<Exit> {
        let outputs = self.task.outputs()?;
        if self.detach && outputs.collect.is_some() {
            return Err(Failure::new("--collect DIR needs this process to stay; leave --detach out, or name a store with --output-store"));
        }
        self.task.check_supported()?;
        let args = self.args()?;
        let cluster = Cluster::connect(&self.cluster).await?;
        let mut link = Link::new(&cluster, self.reconnect).await?;
        let bundles = submit::bundles(&cluster, &mut link, &self.task).await?;
        let request = submit::single(&bundles, &self.task, self.bundle(), &args).await?;
        if self.detach {
            let job = submit::send(&mut link, request).await?;
            return print_id(&self.output, &job);
        }
        follow::submit_and_follow(link, request, &self.output, outputs.collect.as_deref()).await
    }

    pub(crate) fn bundle(&self) -> &OsStr {
        self.command.first().map_or(OsStr::new(""), OsString::as_os_str)
    }

    /// What follows the bundle, without the `--` that may separate both.
    pub(crate) fn args(&self) -> Result<Vec<String>> {
        let rest = self.command.get(1..).unwrap_or_default();
        let rest = if rest.first().is_some_and(|a| a == "--") { &rest[1..] } else { rest };
        rest.iter()
            .map(|arg| {
                let text = arg
                    .to_str()
                    .ok_or_else(|| Failure::new(format!("the argument {arg:?} is not UTF-8, and Wasm guests get only that")))?;
                Ok(text.to_owned())
            })
            .collect()
    }
}

/// The id of a job that was submitted, alone on stdout.
pub(crate) fn print_id(output: &OutputOptions, job: &str) -> Result<Exit> {
    if output.is_json() {
        crate::output::json(&json!({ "job_id": job }))?;
    } else {
        crate::output::line(job)?;
    }
    Ok(SUCCESS)
}
