//! The executor's supervisor: two small single-threaded roles of this binary in front of the worker, and what they come from.
//!
//! `forge` is started by the agent, once, and copies itself for each executor. Such a copy is `launch`: it makes the namespaces and
//! starts `init` in them; `init` is the worker's parent, survives the agent, and records how the worker ended. Where nobody needs to stay
//! outside, the forge starts the worker itself ([`alone`]), in namespaces of which two are made beforehand ([`mold`]), and records how it ended
//! ([`watch`]). All of them are copies
//! of the forge's process ([`fork`]), so that no program is started for an executor, but where its agent has no privilege. Neither knows what a worker does, and neither
//! touches a cgroup: only the agent writes those.

mod alone;
mod args;
mod forge;
mod fork;
mod init;
mod launch;
mod mold;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

/// What went wrong in a supervisor, naming the step and its object.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line is not what the agent writes.
    #[error("bad arguments: {0}")]
    Args(String),
    /// A step failed.
    #[error("{step}: {source}")]
    Step {
        /// What was tried, on what.
        step: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// Names a failing step.
fn step<E: Into<std::io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Error {
    let step = step.into();
    move |e| Error::Step { step, source: e.into() }
}

/// As [`step`], for what is no error of the system: a text, say.
fn step_said<E: Into<Box<dyn std::error::Error + Send + Sync>>>(step: impl Into<String>) -> impl FnOnce(E) -> Error {
    let step = step.into();
    move |e| Error::Step { step, source: std::io::Error::other(e) }
}

/// Runs `smalti-executor forge …`; `args` begin with that verb.
#[must_use]
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    report_end(forge::run(args))
}

/// Runs `smalti-executor init …`, where a copy of its parent would not do; `args` begin with that verb.
#[must_use]
pub(crate) fn init(args: Vec<OsString>) -> ExitCode {
    report_end(args::Supervisor::parse(args).and_then(|parsed| init::run(&parsed)))
}

/// A role's last words.
fn report_end(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("smalti-executor: {e}");
            ExitCode::FAILURE
        }
    }
}
