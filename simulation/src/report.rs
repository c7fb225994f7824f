//! What a run takes and gives.

use std::fmt;

/// What decides everything random in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seed(pub u64);

/// The size of the world.
#[derive(Debug, Clone)]
pub struct Config {
    /// How many agents.
    pub agents: usize,
    /// How many frameworks; every second one is the batch scheduler.
    pub frameworks: usize,
    /// How many things happen before the faults stop.
    pub steps: u64,
    /// Keep every line of the log.
    pub keep_log: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { agents: 3, frameworks: 2, steps: 4_000, keep_log: false }
    }
}

/// A run in which everything held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Things that happened.
    pub steps: u64,
    /// Faults among them.
    pub faults: u64,
    /// Attempts that an executor began with.
    pub starts: u64,
    /// Virtual time in microseconds.
    pub time_us: u64,
    /// Lines of the log.
    pub lines: u64,
    /// Hash of the whole log: equal for equal seeds.
    pub hash: u64,
    /// The log, when it was kept.
    pub log: Vec<String>,
}

/// A run in which something did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which run.
    pub seed: Seed,
    /// After how many things.
    pub step: u64,
    /// What did not hold.
    pub problem: String,
    /// The last lines of the log.
    pub tail: Vec<String>,
    /// The log, when it was kept.
    pub log: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.tail {
            writeln!(f, "    {line}")?;
        }
        write!(f, "seed {} failed at step {}: {}", self.seed.0, self.step, self.problem)
    }
}

impl std::error::Error for Failure {}
