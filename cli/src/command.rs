//! The command line as a value: all verbs with their options and examples.
//!
//! Owns the grammar. The order of values is: flag, environment variable, `--config` file (roles only), default.

use crate::failure::{Failure, Result, SMALTI_FAILED};
use crate::{role, verbs};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;

#[derive(Debug, Parser)]
#[command(name = "smalti", version, about, long_about = None, subcommand_required = true, arg_required_else_help = true)]
#[command(
    after_help = "Examples:\n  smalti dev                         a cluster on this machine, until Ctrl-C\n  smalti run hello.wasm -- world     one task on it, from another terminal\n  smalti map count.wasm --inputs texts/ --reduce sum.wasm\n\nExit codes: the guest's own; 124 time limit; 125 smalti failed; 126 not valid Wasm;\n127 no such bundle; 134 a trap; 137 killed, or another limit."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// A whole cluster on this machine, until Ctrl-C
    Dev(verbs::dev::Dev),
    /// Run one task, stream its output, exit with its exit code
    Run(Box<verbs::run::Run>),
    /// Run one task per index or per part of the input
    Map(Box<verbs::map::Map>),
    /// Submit a job as run or map would, print its id, and leave
    Submit(Box<verbs::submit::Submit>),
    /// Wait for a job and exit as run would have
    Wait(verbs::wait::Wait),
    /// List jobs
    Jobs(verbs::jobs::ListJobs),
    /// List tasks
    Ps(verbs::ps::Ps),
    /// Print what a task or job wrote
    Logs(verbs::logs::Logs),
    /// Stop a task or job
    Kill(verbs::kill::Kill),
    /// Say why a task or job is where it is
    Explain(verbs::explain::Explain),
    /// Look at the files of a task
    Sandbox(verbs::sandbox::Sandbox),
    /// List agents and their resources
    Agents(verbs::agents::Agents),
    /// List frameworks
    Frameworks(verbs::frameworks::Frameworks),
    /// List outstanding offers
    Offers(verbs::offers::Offers),
    /// List roles
    Roles(verbs::roles::Roles),
    /// Quota of roles (not supported yet)
    #[command(hide = true)]
    Quota,
    /// The cluster's bundle store
    Bundle(verbs::bundle::Bundle),
    /// Run a master
    Master(Box<verbs::master::Master>),
    /// Run the batch scheduler
    Scheduler(Box<verbs::scheduler::Scheduler>),
    /// Run an agent
    Agent(Box<verbs::agent::Agent>),
    /// Print a completion script for a shell
    Completion(verbs::completion::Completion),
}

/// Parses the arguments. `--help` and `--version` end the process here, as clap does it.
///
/// # Errors
/// Wrong usage, already explained on stderr. The exit code is not clap's 2: after `run` that is a guest's own.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Verb> {
    let mut command = Cli::command();
    let file = role::config::of_arguments(&command, &args)?;
    if let Some(file) = &file {
        command = file.apply(command);
    }
    let matches = command.clone().try_get_matches_from(args).or_else(refused)?;
    if role::config::wants_print(&matches) {
        role::config::print(&command, &matches, file.as_ref())?;
        std::process::exit(0);
    }
    Ok(Cli::from_arg_matches(&matches).or_else(refused)?.verb)
}

fn refused<T>(error: clap::Error) -> Result<T> {
    if !error.use_stderr() {
        error.exit();
    }
    // Nobody reads stderr: the exit code still says it.
    let _ = error.print();
    Err(Failure { code: SMALTI_FAILED, message: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> std::result::Result<Verb, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"smalti").chain(args)).map(|c| c.verb)
    }

    fn run(args: &[&str]) -> verbs::run::Run {
        match parse(args).unwrap() {
            Verb::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_help_with_examples() {
        let mut command = Cli::command();
        command.build();
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} says nothing");
                if sub.has_subcommands() {
                    check(sub, &path);
                } else {
                    let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(help.contains("Examples:\n  smalti"), "{path} has no examples");
                }
            }
        }
        check(&command, "smalti");
    }

    #[test]
    fn what_follows_the_bundle_of_run_is_the_guest_s() {
        // As Cargo calls its runners: no `--` between.
        let r = run(&["run", "--cpus", "1", "x.wasm", "--nocapture", "-o", "--name=n", "--help"]);
        assert_eq!(r.bundle(), "x.wasm");
        assert_eq!(r.args().unwrap(), ["--nocapture", "-o", "--name=n", "--help"]);
        assert_eq!(run(&["run", "x.wasm", "--", "a", "--", "b"]).args().unwrap(), ["a", "--", "b"]);
        assert_eq!(run(&["run", "-d", "x.wasm"]).args().unwrap(), [""; 0]);
        assert!(parse(&["run"]).is_err());
    }

    #[test]
    fn map_and_submit_take_options_on_both_sides_of_the_bundle() {
        let Verb::Map(map) = parse(&["map", "--cpus", "1", "x.wasm", "--items", "5", "--", "-v"]).unwrap() else { panic!() };
        assert_eq!((map.map.items, map.args), (Some(5), vec!["-v".to_owned()]));
        let Verb::Submit(submit) = parse(&["submit", "x.wasm", "--inputs", "a", "--inputs", "b"]).unwrap() else { panic!() };
        assert!(submit.map.is_map());
        let Verb::Submit(submit) = parse(&["submit", "x.wasm"]).unwrap() else { panic!() };
        assert!(!submit.map.is_map());
        assert!(parse(&["map", "x.wasm"]).is_err(), "a map without items");
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        for args in [&["nonsense"][..], &["wait"], &["run", "--cpus", "0", "x"], &["logs", "j", "--tail", "x"], &["agents", "-o", "xml"]] {
            assert_eq!(parse(args).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }
}
