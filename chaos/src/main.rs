//! `cargo xtask chaos`: a real cluster under load, in which something breaks every second or so; at the end everything is counted.
//!
//! A table of contents: start ([`nodes`]), load ([`load`]), break ([`faults`]), settle, judge ([`verdict`], [`leftovers`]). What
//! breaks and when comes from one seed; what the kernel makes of it does not, so a run can be repeated, not replayed.

mod faults;
mod framework;
mod leftovers;
mod load;
mod net;
mod nodes;
mod rng;
mod verdict;
mod witness;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use rng::Rng;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Breaks a real cluster under load and counts what came of it.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "cargo xtask chaos",
    after_help = "Examples:\n  cargo xtask chaos --minutes 1\n  cargo xtask chaos --minutes 10 --seed 7 --without fill"
)]
struct Args {
    /// A process of the cluster, not for people
    #[command(subcommand)]
    process: Option<Role>,
    /// For how long something breaks; settling and counting come on top
    #[arg(long, default_value_t = 1.0, value_name = "M")]
    minutes: f64,
    /// Decides what breaks and when [default: the time]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Agents
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    agents: u32,
    /// Never break things this way (repeatable)
    #[arg(long, value_enum, value_name = "FAULT")]
    without: Vec<faults::Kind>,
    /// Cut cables by relays although there could be network namespaces
    #[arg(long)]
    relays: bool,
    /// Keep the cluster's directory with all logs
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Subcommand)]
enum Role {
    /// The framework beside the batch scheduler
    #[command(hide = true)]
    Framework(framework::FrameworkArgs),
}

/// Longest time until everything has its end after the last fault: ten times what it takes, and with one minute of faults before it
/// less than three minutes in all.
const SETTLE: Duration = Duration::from_secs(100);

/// The framework beside the scheduler has at least this long when the clients have taken all of it.
const FRAMEWORK: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let mut args = Args::parse();
    let result = match args.process.take() {
        Some(Role::Framework(own)) => framework::run(own),
        None => run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let seed = args.seed.unwrap_or_else(rng::from_the_clock);
    println!("chaos: seed {seed}, {} minutes, {} agents", args.minutes, args.agents);
    // Before any thread is there: each would stay behind.
    let net = net::Net::new(args.relays)?;
    println!("{}", net.describe());
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    // Ctrl-C ends the faults; what was started still ends and is cleaned up.
    ctrlc::set_handler(move || asked.store(true, Ordering::SeqCst)).context("taking Ctrl-C")?;

    let before = leftovers::Snapshot::take()?;
    let mut cluster = nodes::Cluster::start(args.agents, args.keep, net)?;
    let places = cluster.namespaces().into_iter().map(net::Namespace::inode).collect::<Result<Vec<u64>>>()?;
    let result = storm(args, seed, &stop, &mut cluster);
    if result.is_err() {
        stop.store(true, Ordering::SeqCst);
        leftovers::end_clients();
    }
    let result = result.and(cluster.stop()).and_then(|()| {
        let left = before.left(cluster.dir(), &places)?;
        ensure!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
        Ok(())
    });
    if result.is_err() {
        cluster.keep();
    }
    result.with_context(|| format!("seed {seed}; all logs, and what broke when (`faults.log`), are in {}", cluster.dir().display()))?;
    println!("nothing is left behind");
    Ok(())
}

/// Load and faults until the time is over, then calm until everything has ended, then the count.
fn storm(args: &Args, seed: u64, stop: &Arc<AtomicBool>, cluster: &mut nodes::Cluster) -> Result<()> {
    let until = Instant::now() + Duration::from_secs_f64(args.minutes * 60.0);
    let witness = witness::Witness::listen(&cluster.agents_namespaces())?;
    let load = load::Load::start(cluster, &witness, until, stop.clone())?;
    let mut faults = faults::Faults::new(Rng::new(seed), &args.without, &cluster.dir().join("faults.log"))?;
    while Instant::now() < until && !stop.load(Ordering::SeqCst) {
        faults.next(cluster)?;
    }
    faults.heal(cluster)?;
    println!("calm after {}", faults.summary());
    let calm = Instant::now();
    let jobs = load.finish(SETTLE, || cluster.revive()).with_context(|| cluster.logs())?;
    let own = cluster.finish_framework(SETTLE.saturating_sub(calm.elapsed()).max(FRAMEWORK))?;
    println!("the framework beside the scheduler {own}");
    verdict::judge(cluster, &jobs, &witness)
}
