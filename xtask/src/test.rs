//! All tests. Four calls, so that each crate is tested with the features that users get.

use crate::{build, moto};
use anyhow::Result;

pub(crate) fn run(args: &[String]) -> Result<()> {
    build::everything()?;
    moto::install();
    // The executor by itself: its tests bring a compiler, which must not leak into the other crates' features.
    let mut executor = build::cargo("test");
    executor.args(["--package", "smalti-executor"]).args(args);
    build::run(executor)?;
    let mut rest = build::cargo("test");
    rest.args(["--workspace", "--exclude", "smalti-executor", "--exclude", "smalti-simulation"]).args(args);
    build::run(rest)?;
    // By itself: its tests turn deliberate bugs of the cores on, which no program may contain.
    let mut simulation = build::cargo("test");
    simulation.args(["--package", "smalti-simulation"]).args(args);
    build::run(simulation)
}
