//! What the project promises about speed, measured on this machine: every figure beside the floor or peer of the same run.
//!
//! Real processes over loopback, limits, accounting and acknowledgements as by default. The figures are printed; none is
//! judged here.

mod array;
mod figures;
mod floor;
mod network;
mod noisy;
mod rpc;
mod single;

use anyhow::{Context, Result};
use clap::Parser;
use figures::Figures;
use smalti_tests::{AgentConfig, Cluster, Config};
use smalti_types::Isolation;
use std::path::PathBuf;

/// Measures Smalti, each figure beside its floor.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Args {
    /// Only this, instead of the speed
    #[arg(value_enum)]
    only: Option<Only>,
    /// With `noisy`: only this class
    #[arg(long, value_enum, requires = "only")]
    class: Option<Class>,
    /// Fewer repetitions: within a minute
    #[arg(long)]
    quick: bool,
    /// Also write the figures as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is measured by itself.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Only {
    /// What a benign tenant keeps of its throughput beside a hostile one, in both classes
    Noisy,
}

/// A class of isolation.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Class {
    /// Tasks share an executor with others of their framework
    Instance,
    /// Each has one of its own
    Process,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    repetitions: usize,
    array_items: u64,
    single_tasks: u64,
    round_trips: usize,
    floor_seconds: f64,
}

const FULL: Effort = Effort { repetitions: 5, array_items: 400_000, single_tasks: 40_000, round_trips: 2_000, floor_seconds: 2.0 };
const QUICK: Effort = Effort { repetitions: 3, array_items: 100_000, single_tasks: 10_000, round_trips: 500, floor_seconds: 1.0 };

fn main() -> Result<()> {
    let args = Args::parse();
    let mut figures = Figures::default();
    let mut not_measured = Vec::new();
    match args.only {
        Some(Only::Noisy) => {
            let classes = match args.class {
                None => vec![Isolation::Instance, Isolation::Process],
                Some(Class::Instance) => vec![Isolation::Instance],
                Some(Class::Process) => vec![Isolation::Process],
            };
            not_measured = noisy::measure(if args.quick { noisy::QUICK } else { noisy::FULL }, &classes, &mut figures)?;
        }
        None => speed(if args.quick { QUICK } else { FULL }, &mut figures)?,
    }
    figures.print();
    if let Some(path) = args.json {
        std::fs::write(&path, figures.to_json()?).with_context(|| format!("writing {}", path.display()))?;
    }
    anyhow::ensure!(not_measured.is_empty(), "not measured: {}", not_measured.join(", "));
    Ok(())
}

fn speed(effort: Effort, figures: &mut Figures) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().context("starting tokio")?;

    // One agent with two cpus: two slots of one cpu each, as many as the machine has cores.
    let agent = AgentConfig { cpus: "2".into(), mem: "4GiB".into(), ..AgentConfig::default() };
    let cluster = Cluster::start(Config { agents: vec![agent], env: vec![("RUST_LOG".into(), "warn".into())], ..Config::default() })?;
    let guest = cluster.paths.guest("empty")?.display().to_string();
    println!(
        "settings: 1 agent, 2 slots of 1 cpu, isolation auto, accounting, output and acknowledgements on, guest `empty` (Rust, wasip1)"
    );
    let digest = rpc::push(&cluster, &guest)?;
    cluster.ok(&["run", &digest])?; // fetched, compiled, executor started

    floor::measure(&cluster, effort, figures)?;
    array::measure(&cluster, &digest, effort, figures)?;
    runtime.block_on(rpc::measure(&cluster, &digest, effort, figures))?;
    runtime.block_on(single::measure(&cluster, &digest, effort, figures))?;
    network::measure(&cluster, effort, figures)?;
    figures.ratio("array_ratio", "array_items_per_s", "floor_items_per_s");
    figures.ratio("warm_task_p50_rtts", "warm_task_p50_us", "grpc_rtt_p50_us");
    figures.ratio("warm_process_task_p50_spawns", "warm_process_task_p50_us", "spawn_true_p50_us");
    Ok(())
}
