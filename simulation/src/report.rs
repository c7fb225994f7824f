//! What a run takes and gives.

use std::fmt;
use std::str::FromStr;

/// What decides everything random in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seed(pub u64);

/// The size of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How many agents.
    pub agents: usize,
    /// How many frameworks; every second one is the batch scheduler.
    pub frameworks: usize,
    /// How many things happen before the faults stop.
    pub steps: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { agents: 3, frameworks: 2, steps: 4_000 }
    }
}

/// One run, as the first line of its log says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which.
    pub seed: Seed,
    /// How large.
    pub config: Config,
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { agents, frameworks, steps } = self.config;
        write!(f, "smalti-simulation --seed {} --agents {agents} --frameworks {frameworks} --steps {steps}", self.seed.0)
    }
}

impl FromStr for Header {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let wrong = || format!("the first line is not that of a log of the simulation: `{line}`");
        if words.next() != Some("smalti-simulation") {
            return Err(wrong());
        }
        let mut header = Self { seed: Seed(0), config: Config::default() };
        while let (Some(key), Some(value)) = (words.next(), words.next()) {
            let number: u64 = value.parse().map_err(|_| wrong())?;
            let size = usize::try_from(number).map_err(|_| wrong())?;
            match key {
                "--seed" => header.seed = Seed(number),
                "--agents" => header.config.agents = size,
                "--frameworks" => header.config.frameworks = size,
                "--steps" => header.config.steps = number,
                _ => return Err(wrong()),
            }
        }
        Ok(header)
    }
}

/// A run in which everything held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Things that happened.
    pub steps: u64,
    /// Faults among them.
    pub faults: u64,
    /// Attempts that an executor began with.
    pub starts: u64,
    /// Items that a slot began with.
    pub items: u64,
    /// Virtual time in microseconds.
    pub time_us: u64,
    /// Lines of the log.
    pub lines: u64,
    /// Hash of the whole log: equal for equal seeds.
    pub hash: u64,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_log_says_which_run_it_is() {
        let header = Header { seed: Seed(7), config: Config { agents: 5, frameworks: 4, steps: 9 } };
        assert_eq!(header.to_string().parse(), Ok(header));
        assert!("something else".parse::<Header>().is_err());
        assert!("smalti-simulation --seed x".parse::<Header>().is_err());
    }
}
