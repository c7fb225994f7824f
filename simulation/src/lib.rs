//! The cores of master, agent, framework SDK and batch scheduler, unchanged, in a world with virtual time, a network that
//! delays and breaks, and processes that crash at any step. One seed decides everything: the same seed gives the same
//! log, byte for byte.
//!
//! Invariants are checked after every event: those of each core, and those of the world (see `checks`). When the faults
//! stop, everything must come to rest: every launch has its one terminal status, all resources are free.
//!
//! Deliberately absent: threads, clocks, sockets, files; the shells of the processes (they have tests of their own).

mod batch;
mod checks;
mod executor;
mod log;
mod network;
mod nodes;
mod report;
mod rng;
mod script;
mod world;

pub use report::{Config, Failure, Report, Seed};

/// Runs one world to its end.
///
/// # Errors
/// The first thing that did not hold, with the last lines of the log.
pub fn run(seed: Seed, config: &Config) -> Result<Report, Box<Failure>> {
    let mut world = world::World::new(seed.0, config);
    match world.run(config.steps) {
        Ok(()) => Ok(Report {
            steps: world.steps,
            faults: world.faults,
            starts: world.checks.starts(),
            time_us: world.now.0,
            lines: world.log.lines(),
            hash: world.log.hash(),
            log: world.log.take_all(),
        }),
        Err(problem) => Err(Box::new(Failure { seed, step: world.steps, problem, tail: world.log.tail(), log: world.log.take_all() })),
    }
}

#[cfg(test)]
mod tests;
