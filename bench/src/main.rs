//! What the project promises about speed, measured on this machine: every figure beside the floor or peer of the same run.
//!
//! Real processes over loopback, limits, accounting and acknowledgements as by default. The figures are printed; none is
//! judged here.

mod allocation;
mod array;
mod figures;
mod floor;
mod growth;
mod memory;
mod network;
mod noisy;
mod offers;
mod process;
mod rpc;
mod scaling;
mod settings;
mod single;
mod spawn;
mod svg;
mod words;

use anyhow::{Context, Result};
use clap::Parser;
use figures::Figures;
use smalti_tests::{AgentConfig, Cluster, Config};
use smalti_types::Isolation;
use std::path::PathBuf;
use std::time::Instant;

/// Measures Smalti, each figure beside its floor.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Args {
    /// Only these, instead of all but `noisy` and `scaling`
    #[arg(value_enum)]
    only: Vec<Group>,
    /// With `noisy`: only this class
    #[arg(long, value_enum, requires = "only")]
    class: Option<Class>,
    /// Fewer repetitions: within a minute
    #[arg(long)]
    quick: bool,
    /// Also write the figures as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// With `scaling`: also draw the figures' growth into this directory
    #[arg(long, value_name = "DIR", requires = "only")]
    plots: Option<PathBuf>,
}

/// Figures that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Group {
    /// Task arrays beside a bare loop
    Array,
    /// One task at a time on an idle cluster, beside a gRPC round trip
    Warm,
    /// Class `process` beside bare processes
    Process,
    /// Single tasks per second
    Single,
    /// From a freed resource to the next offer
    Offers,
    /// The master's core with 50,000 agents and 1,000 frameworks
    Allocation,
    /// Memory and cpu of idle processes, and of thousands of sleeping tasks
    Memory,
    /// Memory of the master for each agent and each live task, with simulated agents
    Master,
    /// A word count beside the same program compiled natively
    Words,
    /// Servers in guests beside a native one
    Network,
    /// What a benign tenant keeps of its throughput beside a hostile one, in both classes
    Noisy,
    /// How figures grow with executors, items, agents and frameworks
    Scaling,
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
    process_launches: usize,
    process_tasks: u64,
    confined_spawns: usize,
    offers: usize,
    idle_seconds: f64,
    sleepers: u64,
    swarm: (u64, u64),
    text_bytes: usize,
}

const FULL: Effort = Effort {
    repetitions: 5,
    array_items: 400_000,
    single_tasks: 40_000,
    round_trips: 2_000,
    floor_seconds: 1.5,
    process_launches: 50,
    process_tasks: 400,
    confined_spawns: 300,
    offers: 300,
    idle_seconds: 10.0,
    sleepers: 10_000,
    swarm: (2_000, 20_000),
    text_bytes: 100_000_000,
};
const QUICK: Effort = Effort {
    repetitions: 3,
    array_items: 60_000,
    single_tasks: 8_000,
    round_trips: 300,
    floor_seconds: 0.3,
    process_launches: 15,
    process_tasks: 200,
    confined_spawns: 60,
    offers: 100,
    idle_seconds: 2.0,
    sleepers: 1_000,
    swarm: (500, 5_000),
    text_bytes: 12_000_000,
};

fn main() -> Result<()> {
    let args = Args::parse();
    let mut figures = Figures::default();
    let mut not_measured = Vec::new();
    if args.only.contains(&Group::Noisy) {
        let classes = match args.class {
            None => vec![Isolation::Instance, Isolation::Process],
            Some(Class::Instance) => vec![Isolation::Instance],
            Some(Class::Process) => vec![Isolation::Process],
        };
        not_measured = noisy::measure(if args.quick { noisy::QUICK } else { noisy::FULL }, &classes, &mut figures)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().context("starting tokio")?;
    let mut growth = Vec::new();
    if args.only.contains(&Group::Scaling) {
        growth = scaling::measure(if args.quick { &scaling::QUICK } else { &scaling::FULL }, &runtime)?;
        if let Some(dir) = &args.plots {
            scaling::draw(&growth, dir)?;
        }
    }
    if args.only.is_empty() || !args.only.iter().all(|group| matches!(group, Group::Noisy | Group::Scaling)) {
        speed(&args.only, if args.quick { QUICK } else { FULL }, &runtime, &mut figures)?;
    }
    figures.print();
    if let Some(path) = args.json {
        std::fs::write(&path, figures.to_json(&growth)?).with_context(|| format!("writing {}", path.display()))?;
    }
    anyhow::ensure!(not_measured.is_empty(), "not measured: {}", not_measured.join(", "));
    Ok(())
}

fn speed(only: &[Group], effort: Effort, runtime: &tokio::runtime::Runtime, figures: &mut Figures) -> Result<()> {
    let wanted = |group| only.is_empty() || only.contains(&group);

    // One agent with two cpus: two slots of one cpu each, as many as the machine has cores.
    let agent = AgentConfig { cpus: "2".into(), mem: "4GiB".into(), ..AgentConfig::default() };
    let cluster = Cluster::start(Config { agents: vec![agent], env: vec![("RUST_LOG".into(), "warn".into())], ..Config::default() })?;
    let ready = |guest: &str| -> Result<String> {
        let digest = rpc::push(&cluster, &cluster.paths.guest(guest)?.display().to_string())?;
        cluster.ok(&["run", &digest])?; // fetched, compiled, executor started
        Ok(digest)
    };
    let digest = ready("empty")?;
    let mut took = Took::new();

    if wanted(Group::Memory) {
        memory::idle(&cluster, effort, figures)?;
    }
    took.note("memory");
    if wanted(Group::Array) {
        let busy = ready("busy")?;
        floor::measure(&cluster, &digest, "floor_items_per_s", effort, figures)?;
        array::measure(&cluster, &digest, "array_items_per_s", effort.array_items, effort, figures)?;
        floor::measure(&cluster, &busy, "busy_floor_items_per_s", effort, figures)?;
        array::measure(&cluster, &busy, "busy_array_items_per_s", effort.array_items / 10, effort, figures)?;
        figures.ratio("array_ratio", "array_items_per_s", "floor_items_per_s");
        figures.ratio("busy_array_ratio", "busy_array_items_per_s", "busy_floor_items_per_s");
    }
    took.note("array");
    if wanted(Group::Warm) {
        runtime.block_on(rpc::warm(&cluster, &digest, effort, figures))?;
        figures.ratio("warm_task_p50_rtts", "warm_task_p50_us", "grpc_rtt_p50_us");
        figures.ratio("warm_task_p99_rtts", "warm_task_p99_us", "grpc_rtt_p50_us");
    }
    took.note("warm");
    if wanted(Group::Process) {
        runtime.block_on(process::measure(&cluster, &digest, effort, figures))?;
    }
    took.note("process");
    if wanted(Group::Single) {
        runtime.block_on(single::measure(&cluster, &digest, effort, figures))?;
    }
    took.note("single");
    if wanted(Group::Offers) {
        runtime.block_on(offers::measure(&cluster, &digest, effort, figures))?;
    }
    took.note("offers");
    if wanted(Group::Network) {
        network::measure(&cluster, effort, figures)?;
    }
    took.note("network");
    // By now the agent has reported what stands around its executors.
    println!("{}\nsettings: slots of 1 cpu, guest `empty` (Rust, wasip1)", settings::of(&cluster)?);
    drop(cluster);
    if wanted(Group::Allocation) {
        allocation::measure(effort, figures)?;
    }
    took.note("allocation");
    if wanted(Group::Master) {
        let (agents, tasks) = effort.swarm;
        runtime.block_on(scaling::footprint(agents, tasks, figures))?;
    }
    took.note("master");
    if wanted(Group::Words) {
        words::measure(effort, figures)?;
    }
    took.note("words");
    if wanted(Group::Memory) {
        runtime.block_on(memory::sleepers(effort, figures))?;
    }
    took.note("sleepers");
    took.print();
    Ok(())
}

/// How long each group took: a full run is to end within ten minutes, a quick one within one.
struct Took {
    since: Instant,
    groups: Vec<(&'static str, f64)>,
}

impl Took {
    fn new() -> Self {
        Self { since: Instant::now(), groups: Vec::new() }
    }

    fn note(&mut self, group: &'static str) {
        let now = Instant::now();
        self.groups.push((group, now.duration_since(self.since).as_secs_f64()));
        self.since = now;
    }

    fn print(&self) {
        let each: Vec<String> = self.groups.iter().filter(|(_, s)| *s >= 0.05).map(|(name, s)| format!("{name} {s:.1}")).collect();
        println!("seconds: {}; {:.1} together", each.join(", "), self.groups.iter().map(|(_, s)| s).sum::<f64>());
    }
}
