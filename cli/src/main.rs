//! `smalti`: every role and every client verb in one program.
//!
//! Owns the process: arguments, the runtime, the exit code. One file per verb lies in `verbs`.

mod bundle;
mod cluster;
mod command;
mod dev;
mod failure;
mod job;
mod output;
mod role;
mod terminal;
mod time;
mod verbs;
mod views;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The agent re-executes its own program to compile, away from everything else, with arguments that are its own.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == "compiler") {
        return smalti_agent::compiler::main();
    }
    let verb = match command::parse(std::env::args_os().collect()) {
        Ok(verb) => verb,
        Err(failure) => return report(failure),
    };
    match verbs::run(verb) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => report(failure),
    }
}

/// The one place where a failure is printed.
fn report(failure: failure::Failure) -> ExitCode {
    use std::io::Write;
    if let Some(message) = &failure.message {
        // Nobody reads stderr: the exit code still says it.
        let _ = writeln!(std::io::stderr().lock(), "error: {message}");
    }
    ExitCode::from(failure.code)
}
