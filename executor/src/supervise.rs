//! The executor's supervisor: two small single-threaded roles of this binary in front of the worker.
//!
//! `launch` is started by the agent, makes the namespaces and starts `init` in them; `init` is the worker's parent, survives the
//! agent, and records how the worker ended. Neither knows what a worker does, and neither touches a cgroup: only the agent
//! writes those.

mod args;
mod init;
mod launch;

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

/// A process of this same binary, with nothing in its environment. By its real path, so that `ps` shows its name.
fn same_binary() -> std::process::Command {
    let path = std::env::current_exe().ok().filter(|p| p.exists()).unwrap_or_else(|| "/proc/self/exe".into());
    let mut command = std::process::Command::new(path);
    std::os::unix::process::CommandExt::arg0(&mut command, "smalti-executor");
    command.env_clear();
    command
}

/// Runs `smalti-executor launch …` or `smalti-executor init …`; `args` begin with that verb.
#[must_use]
pub(crate) fn main(args: Vec<OsString>) -> ExitCode {
    let parsed = args::Supervisor::parse(args);
    let result = match &parsed {
        Ok(s) if s.verb == args::Verb::Launch => launch::run(s),
        Ok(s) => init::run(s),
        Err(e) => launch::report(&Err(Error::Args(e.to_string()))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("smalti-executor: {e}");
            ExitCode::FAILURE
        }
    }
}
