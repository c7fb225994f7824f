//! Runs the simulation for many seeds; a failure prints its seed and what happened last.

use clap::Parser;
use smalti_simulation::{Config, Seed, run};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Simulates whole clusters, each from one seed, and checks their invariants after every event.
#[derive(Debug, Parser)]
#[command(name = "smalti-simulation")]
struct Options {
    /// How many seeds to run, one after another.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Agents in each world.
    #[arg(long, default_value_t = 3)]
    agents: usize,
    /// Frameworks in each world.
    #[arg(long, default_value_t = 2)]
    frameworks: usize,
    /// Things that happen before the faults stop.
    #[arg(long, default_value_t = 4_000)]
    steps: u64,
    /// Write every line of the (last) run's log to this file.
    #[arg(long)]
    log: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let config = Config {
        agents: options.agents.max(1),
        frameworks: options.frameworks.max(1),
        steps: options.steps,
        keep_log: options.log.is_some(),
    };
    let begun = Instant::now();
    let (mut steps, mut faults, mut starts, mut virtual_us) = (0, 0, 0, 0);
    for seed in options.seed..options.seed.saturating_add(options.seeds) {
        let (log, failure) = match run(Seed(seed), &config) {
            Ok(report) => {
                steps += report.steps;
                faults += report.faults;
                starts += report.starts;
                virtual_us += report.time_us;
                (report.log, None)
            }
            Err(failure) => (failure.log.clone(), Some(failure)),
        };
        if let Some(path) = &options.log
            && let Err(e) = std::fs::write(path, log.join("\n") + "\n")
        {
            eprintln!("cannot write the log to {}: {e}", path.display());
            return ExitCode::FAILURE;
        }
        if let Some(failure) = failure {
            eprintln!("{failure}");
            eprintln!(
                "again: cargo xtask sim --seed {seed} --seeds 1 --agents {} --frameworks {} --steps {}",
                config.agents, config.frameworks, config.steps
            );
            return ExitCode::FAILURE;
        }
    }
    println!(
        "{} seeds from {}: {steps} events, {faults} faults, {starts} attempts started, {} virtual seconds, in {:.1} s",
        options.seeds,
        options.seed,
        virtual_us / 1_000_000,
        begun.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}
