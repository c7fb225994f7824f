//! The chaos test, as a program of its own over the release binaries.

use crate::build;
use anyhow::Result;

pub(crate) fn run(args: &[String]) -> Result<()> {
    build::everything()?;
    let mut c = build::cargo("run");
    c.args(["--quiet", "--package", "smalti-chaos", "--"]).args(args);
    build::run(c)
}
