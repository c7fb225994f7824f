//! The cores of master, agent, framework SDK and batch scheduler, unchanged, in a world with virtual time, a network that
//! delays, breaks and is cut, disks, clocks that drift, and processes and machines that crash at any step. One seed decides
//! everything: the same seed gives the same log, byte for byte.
//!
//! Invariants are checked after every event: those of each core, and those of the world (see `checks`). When the faults
//! stop, everything must come to rest: every launch has its one terminal status, all resources are free.
//!
//! Deliberately absent: threads, clocks, sockets, files; the shells of the processes (they have tests of their own).

mod batch;
mod checks;
mod clock;
mod disk;
mod executor;
mod faults;
mod log;
mod machine;
mod network;
mod nodes;
mod replay;
mod report;
mod rng;
mod script;
mod world;

pub use log::Sink;
pub use replay::{Replayed, replay, write_log};
pub use report::{Config, Failure, Header, Report, Seed};

/// Runs one world to its end.
///
/// # Errors
/// The first thing that did not hold, with the last lines of the log.
pub fn run(seed: Seed, config: &Config) -> Result<Report, Box<Failure>> {
    run_until(seed, config, u64::MAX, None).0
}

/// Runs one world to its end or to a step, and gives every line of its log to `sink`. The second value is the world as it then is.
fn run_until(seed: Seed, config: &Config, until: u64, sink: Option<Sink>) -> (Result<Report, Box<Failure>>, world::World) {
    let mut world = world::World::new(seed.0, config, log::Log::new(sink));
    let result = match world.run(config.steps, until) {
        Ok(()) => Ok(Report {
            steps: world.steps,
            faults: world.faults,
            starts: world.checks.starts(),
            items: world.checks.items(),
            time_us: world.now.0,
            lines: world.log.lines(),
            hash: world.log.hash(),
        }),
        Err(problem) => Err(Box::new(Failure { seed, step: world.steps, problem, tail: world.log.tail() })),
    };
    (result, world)
}

#[cfg(test)]
mod tests;
