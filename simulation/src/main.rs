//! Runs the simulation for many seeds; a failure prints its seed and what happened last, and writes the run's log.

use clap::Parser;
use smalti_simulation::{Config, Header, Report, Seed, replay, run, write_log};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Lines that a replay shows before the step at which it stops.
const SHOWN: usize = 40;

/// Simulates whole clusters, each from one seed, and checks their invariants after every event.
#[derive(Debug, Parser)]
#[command(name = "smalti-simulation")]
struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Agents in each world.
    #[arg(long, default_value_t = 3)]
    agents: usize,
    /// Frameworks in each world; every second one is the batch scheduler.
    #[arg(long, default_value_t = 2)]
    frameworks: usize,
    /// Things that happen before the faults stop.
    #[arg(long, default_value_t = 4_000)]
    steps: u64,
    /// Worlds simulated at once; each by one thread. Default: one for each processor.
    #[arg(long)]
    threads: Option<usize>,
    /// Write every line of the first seed's log to this file, whether or not it fails.
    #[arg(long, conflicts_with = "replay")]
    log: Option<PathBuf>,
    /// Run again what this log was written for, and compare.
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Stop the replay after this step, and show every node as it then is.
    #[arg(long, requires = "replay")]
    until: Option<u64>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match &options.replay {
        Some(path) => run_again(path, options.until),
        None => run_all(&options),
    }
}

/// Sums over the runs.
#[derive(Debug, Default)]
struct Sums {
    steps: u64,
    faults: u64,
    starts: u64,
    items: u64,
    virtual_us: u64,
}

impl Sums {
    fn add(&mut self, report: &Report) {
        self.steps += report.steps;
        self.faults += report.faults;
        self.starts += report.starts;
        self.items += report.items;
        self.virtual_us += report.time_us;
    }
}

fn run_all(options: &Options) -> ExitCode {
    let config = Config { agents: options.agents.max(1), frameworks: options.frameworks.max(1), steps: options.steps };
    if let Some(path) = &options.log {
        return log_one(&Header { seed: Seed(options.seed), config }, path);
    }
    let begun = Instant::now();
    let (next, stop) = (AtomicU64::new(options.seed), AtomicBool::new(false));
    let end = options.seed.saturating_add(options.seeds);
    let (sums, failures) = (Mutex::new(Sums::default()), Mutex::new(Vec::new()));
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    match run(Seed(seed), &config) {
                        Ok(report) => sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(&report),
                        Err(failure) => {
                            stop.store(true, Ordering::Relaxed);
                            failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(failure);
                        }
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    failures.sort_by_key(|f| f.seed);
    if let Some(failure) = failures.first() {
        eprintln!("{failure}");
        return keep_log(&Header { seed: failure.seed, config });
    }
    let sums = sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!(
        "{} seeds from {}: {} events, {} faults, {} attempts and {} items started, {} virtual seconds, in {:.1} s",
        options.seeds,
        options.seed,
        sums.steps,
        sums.faults,
        sums.starts,
        sums.items,
        sums.virtual_us / 1_000_000,
        begun.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

/// The log of a run that failed.
fn keep_log(header: &Header) -> ExitCode {
    let path = PathBuf::from(format!("simulation-{}.log", header.seed.0));
    match write_log(header, &path) {
        Ok(_) => eprintln!("its log: {0}; to step through it: cargo xtask sim --replay {0} --until STEP", path.display()),
        Err(e) => eprintln!("its log cannot be written to {}: {e}; run it again with --log FILE", path.display()),
    }
    let Config { agents, frameworks, steps } = header.config;
    eprintln!("again: cargo xtask sim --seed {} --seeds 1 --agents {agents} --frameworks {frameworks} --steps {steps}", header.seed.0);
    ExitCode::FAILURE
}

fn log_one(header: &Header, path: &Path) -> ExitCode {
    match write_log(header, path) {
        Ok(Ok(report)) => {
            println!("{} events, {} faults, hash {:016x}", report.steps, report.faults, report.hash);
            ExitCode::SUCCESS
        }
        Ok(Err(failure)) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("cannot write the log to {}: {e}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn run_again(path: &Path, until: Option<u64>) -> ExitCode {
    let shown = std::rc::Rc::new(std::cell::RefCell::new(VecDeque::new()));
    let lines = std::rc::Rc::clone(&shown);
    let show = move |line: &str| {
        let mut lines = lines.borrow_mut();
        if lines.len() == SHOWN {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    };
    let replayed = match replay(path, until.unwrap_or(u64::MAX), show) {
        Ok(replayed) => replayed,
        Err(e) => {
            eprintln!("cannot replay {}: {e}", path.display());
            return ExitCode::FAILURE;
        }
    };
    if until.is_some() {
        println!("{}", replayed.state);
    }
    for line in shown.borrow().iter() {
        println!("{line}");
    }
    if let Some((number, before, now)) = replayed.differs {
        eprintln!("line {number} is another one than in the log, so the code is not that which wrote it:\n  then {before}\n  now  {now}");
        return ExitCode::FAILURE;
    }
    match replayed.result {
        Ok(report) => {
            println!("the same {} lines as in the log, up to step {}", report.lines, report.steps);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{}", failure.problem);
            ExitCode::SUCCESS
        }
    }
}
