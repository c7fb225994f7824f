//! The benchmarks, as a program of their own over the release binaries.

use crate::build;
use anyhow::Result;

pub(crate) fn run(args: &[String]) -> Result<()> {
    build::everything()?;
    // The same program as the guest's, for comparison.
    let mut native = build::cargo("build");
    native.args(["--quiet", "--package", "smalti-wasm-examples", "--bin", "wordcount"]);
    build::run(native)?;
    let mut c = build::cargo("run");
    c.args(["--quiet", "--package", "smalti-bench", "--bin", "smalti-bench", "--"]).args(args);
    build::run(c)
}

/// Simulated agents, as a program of their own over the release binaries.
pub(crate) fn swarm(args: &[String]) -> Result<()> {
    build::binaries()?;
    let mut c = build::cargo("run");
    c.args(["--quiet", "--package", "smalti-bench", "--bin", "smalti-swarm", "--"]).args(args);
    build::run(c)
}
