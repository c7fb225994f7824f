//! Project automation: `cargo xtask build | demo | test | test-v2 | bench | instructions | swarm | sim | chaos | wasi-testsuite | tidy`.

mod bench;
mod build;
mod chaos;
mod demo;
mod instructions;
mod moto;
mod sim;
mod test;
mod test_v2;
mod tidy;
mod wasi_testsuite;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Builds, shows, tests and measures Smalti.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Adds the Wasm targets if they are missing, builds smalti, its executor and the example guests
    Build,
    /// Builds everything, starts a cluster of real processes, counts the words of a real text on it, checks the counts
    Demo {
        /// A text to count instead of the one in the repository
        text: Option<PathBuf>,
    },
    /// Sets up whatever the tests need and runs all of them
    Test {
        /// Further arguments for every `cargo test`, e.g. a part of a test's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs the suites of limits and confinement on kernels with nothing but cgroup v2, under qemu (see docs/testing-v2.md)
    TestV2(test_v2::Options),
    /// Measures, each figure beside its floor
    Bench {
        /// Arguments for the bench program: names of groups, --quick, --json FILE, --plots DIR
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Counts the instructions of the pure cores with valgrind, and compares them with those that are committed
    Instructions(instructions::Options),
    /// Simulated agents that speak the real protocol, many in one process: `cargo xtask swarm --agents 5000`
    Swarm {
        /// Arguments for the swarm program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs the cores in the simulation: `cargo xtask sim --seeds 200`
    Sim {
        /// Arguments for the simulation program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Breaks a real cluster under load and counts what came of it: `cargo xtask chaos --minutes 1`
    Chaos {
        /// Arguments for the chaos program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs the official WASI test suite (preview 1) through `smalti run`: see docs/wasi-testsuite.md
    WasiTestsuite {
        /// A checkout of its branch `prod/testsuite-base`
        suite: PathBuf,
        /// Runs every program with this runtime, too, and minds only what that one passes, e.g. "wasmtime run"
        #[arg(long, value_name = "COMMAND")]
        reference: Option<String>,
    },
    /// Checks the rules of the repository that no compiler checks
    Tidy,
}

fn main() -> ExitCode {
    // The machine of `test-v2` has this program as its first process.
    if let Some(code) = test_v2::init() {
        return code;
    }
    // Ctrl-C reaches every process of the terminal's group. This one goes on to its next error, and so stops what it
    // started and removes what it made.
    if let Err(error) = ctrlc::set_handler(|| {}) {
        eprintln!("warning: Ctrl-C will not clean up: {error}");
    }
    let result = match Args::parse().verb {
        Verb::Build => build::everything(),
        Verb::Demo { text } => demo::run(text),
        Verb::Test { args } => test::run(&args),
        Verb::TestV2(options) => test_v2::run(&options),
        Verb::Bench { args } => bench::run(&args),
        Verb::Instructions(options) => instructions::run(&options),
        Verb::Swarm { args } => bench::swarm(&args),
        Verb::Sim { args } => sim::run(&args),
        Verb::Chaos { args } => chaos::run(&args),
        Verb::WasiTestsuite { suite, reference } => wasi_testsuite::run(&suite, reference.as_deref()),
        Verb::Tidy => tidy::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
