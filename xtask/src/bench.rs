//! The benchmarks, as a program of their own over the release binaries.

use crate::build;
use anyhow::Result;

pub(crate) fn run(args: &[String]) -> Result<()> {
    build::everything()?;
    let mut c = build::cargo("run");
    c.args(["--quiet", "--package", "smalti-bench", "--"]).args(args);
    build::run(c)
}
