//! `cargo xtask swarm`: simulated agents for a real master, many in one process.

use anyhow::{Context, Result};
use clap::Parser;
use smalti_bench::swarm::{Options, Swarm};
use smalti_tests::{Cluster, Config};
use smalti_types::{Bytes, MilliCpus, Resources};
use std::time::Duration;

/// Simulated agents that speak the real protocol: each has its own connection, registers, beats, takes single tasks and says RUNNING and
/// FINISHED. Nothing is run.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask swarm",
    after_help = "Examples:
  cargo xtask swarm --agents 5000                                  a master of its own; its address is printed
  cargo xtask swarm --agents 200 --master 127.0.0.1:5050 --task-time 50 --minutes 2"
)]
struct Args {
    /// How many agents
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=50_000))]
    agents: u64,
    /// The master that they register with [default: one that is started for them]
    #[arg(long, value_name = "HOST:PORT")]
    master: Option<String>,
    /// Processor cores of each
    #[arg(long, value_name = "N", default_value = "4")]
    cpus: MilliCpus,
    /// Memory of each
    #[arg(long, visible_alias = "mem", value_name = "SIZE", default_value = "4GiB")]
    memory: Bytes,
    /// How long each task takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 100)]
    task_time: u64,
    /// End after this many minutes [default: with Ctrl-C]
    #[arg(long, value_name = "N")]
    minutes: Option<f64>,
    /// Names of agents begin with this
    #[arg(long, value_name = "NAME", default_value = "swarm")]
    prefix: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    // Before the master is started: it inherits the limit.
    smalti_bench::files::allow(args.agents)?;
    let own = match args.master {
        Some(_) => None,
        None => Some(Cluster::start(Config { agents: Vec::new(), scheduler: false, ..Config::default() })?),
    };
    let master = args.master.clone().or_else(|| own.as_ref().map(|c| c.address.clone())).context("a master")?;
    if own.is_some() {
        println!("ready: master {master}");
    }
    let options = Options {
        master,
        agents: args.agents,
        prefix: args.prefix.clone(),
        total: Resources::new(args.cpus, args.memory),
        task_time: Duration::from_millis(args.task_time),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting tokio")?;
    runtime.block_on(run(&options, args.minutes))
}

async fn run(options: &Options, minutes: Option<f64>) -> Result<()> {
    // A master that is not there is said at once, not tried for ever.
    smalti_proto::client::connect(&options.master).await?;
    let mut swarm = Swarm::start(options)?;
    let counts = swarm.counts.clone();
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    every.tick().await;
    let end = async {
        match minutes {
            Some(minutes) => tokio::time::sleep(Duration::from_secs_f64(minutes.clamp(0.0, 1e6) * 60.0)).await,
            None => std::future::pending().await,
        }
    };
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(end, interrupted);
    loop {
        tokio::select! {
            _ = every.tick() => eprintln!("{counts}"),
            why = swarm.failed() => anyhow::bail!(why),
            () = &mut end => break,
            signal = &mut interrupted => {
                signal.context("waiting for Ctrl-C")?;
                break;
            }
        }
    }
    eprintln!("{counts}");
    swarm.leave().await;
    Ok(())
}
