//! `smalti-executor`: hosts Wasm instances of one framework, without a compiler.
//!
//! Four roles of one binary: `forge` is started by an agent, never by people, and the others are copies of it, one of each for an
//! executor. `launch` and `init` make the walls and stand before the worker ([`supervise`]), `work` runs the guests ([`worker`]).
//! Where a guest may have sockets, `launch` stays and makes them ([`broker`]). [`confine`] has the walls.
//!
//! A library only so that `fuzz/` can link it: the program is [`main`].
//!
//! The worker: the main thread takes frames off the agent's connection (`worker`, `start`, `modules`); one thread per slot runs
//! guests (`slot`, `task`, `array`, `instance`); one thread looks at the clock (`ticker`), one writes what the agent is slow to read (`link`;
//! otherwise slots send for themselves), and one ends exclusive tasks (`leases`).

mod accept;
mod array;
mod broken;
mod broker;
mod clock;
mod confine;
mod control;
mod directories;
mod engine;
mod failure;
mod floor;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gauge;
mod host;
mod inputs;
mod instance;
mod leases;
mod limits;
mod link;
mod listing;
mod modules;
mod network;
mod outbox;
mod output;
mod prepared;
mod preview1;
mod preview2;
mod queue;
mod report;
mod runs;
mod scratch;
mod slot;
mod slots;
mod start;
mod state;
mod streams;
mod supervise;
mod task;
#[cfg(test)]
mod tests;
mod ticker;
mod unpack;
mod worker;

use std::ffi::OsString;
use std::process::ExitCode;

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|verb| verb.to_str()) {
        Some("forge") => supervise::main(&args),
        Some("init") => supervise::init(args),
        Some("work") => worker::main(args),
        Some("floor") => floor::main(args),
        other => {
            eprintln!("smalti-executor: {other:?} is not a role; an agent starts this program as `forge`");
            ExitCode::FAILURE
        }
    }
}
