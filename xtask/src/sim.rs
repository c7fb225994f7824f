//! The simulation, as a program of its own.

use crate::build;
use anyhow::Result;

pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut c = build::cargo("run");
    c.args(["--quiet", "--package", "smalti-simulation", "--"]).args(args);
    build::run(c)
}
