//! All tests. Three sets, so that each crate is tested with the features that users get.

use crate::{build, moto};
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::process::Command;
use std::thread;

pub(crate) fn run(args: &[String]) -> Result<()> {
    build::everything()?;
    moto::install();
    let only_build = args.iter().any(|a| a == "--no-run");
    // The executor by itself: its tests bring a compiler, which must not leak into the other crates' features.
    let executor = ["--package", "smalti-executor"];
    let rest = ["--workspace", "--exclude", "smalti-executor", "--exclude", "smalti-simulation"];
    build::run(tests(&executor, &["--no-run".to_owned()]))?;
    // One of them takes minutes on one processor; meanwhile the others are built. What they say is shown when they are over.
    let running = (!only_build).then(|| {
        let mut tests = tests(&executor, args);
        eprintln!("the executor's tests run while the others are built");
        thread::spawn(move || tests.output())
    });
    build::run(tests(&rest, &["--no-run".to_owned()]))?;
    if let Some(running) = running {
        let output = running.join().map_err(|_| anyhow::anyhow!("the thread that waits for the executor's tests failed"))?;
        let output = output.context("starting the executor's tests")?;
        std::io::stdout().write_all(&output.stdout)?;
        std::io::stderr().write_all(&output.stderr)?;
        if !output.status.success() {
            bail!("the executor's tests failed: {}", output.status);
        }
        build::run(tests(&rest, args))?;
    }
    // By itself: its tests turn deliberate bugs of the cores on, which no program may contain.
    build::run(tests(&["--package", "smalti-simulation"], args))
}

fn tests(which: &[&str], args: &[String]) -> Command {
    let mut tests = build::cargo("test");
    tests.args(which).args(args);
    tests
}
