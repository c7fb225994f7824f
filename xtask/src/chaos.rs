//! The chaos test, as a program of its own over the release binaries.

use crate::build;
use anyhow::Result;
use std::process::{Command, Stdio};

/// Programs that make and shape networks, from Debian's `iproute2`.
const TOOLS: [&str; 2] = ["ip", "tc"];

pub(crate) fn run(args: &[String]) -> Result<()> {
    build::everything()?;
    // Where they cannot be installed the test says itself what is missing, if it needs them at all.
    if !TOOLS.iter().all(|tool| is_there(tool)) {
        build::install(&["iproute2"])?;
    }
    let mut c = build::cargo("run");
    c.args(["--quiet", "--package", "smalti-chaos", "--"]).args(args);
    build::run(c)
}

fn is_there(tool: &str) -> bool {
    Command::new(tool).arg("-Version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}
