//! A second server of S3 for tests, by other people than the first: moto, in a virtual environment of Python below the target directory.
//!
//! Where it cannot be installed, that is said here, and the tests that need it fail and say the same.

use crate::build;
use anyhow::{Context, Result};
use smalti_tests::workspace_root;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The server, and what it takes from the web.
const PACKAGES: [&str; 3] = ["moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"];
/// Names what was installed, once all of it is.
const INSTALLED: &str = "smalti-installed";

/// Installs it unless it is there.
pub(crate) fn install() {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_root().join("target"), PathBuf::from);
    let environment = target.join("moto");
    let note = environment.join(INSTALLED);
    if std::fs::read_to_string(&note).is_ok_and(|installed| installed == PACKAGES.join("\n")) {
        return;
    }
    let installed = make(&environment).and_then(|()| std::fs::write(&note, PACKAGES.join("\n")).context("noting what is installed"));
    if let Err(why) = installed {
        eprintln!(
            "warning: no second server of S3: {why:#}. Tests that need it will fail: they need python3 with its module venv (on Debian: \
             apt install python3 python3-venv) and an index of packages that pip can reach"
        );
    }
}

fn make(environment: &Path) -> Result<()> {
    eprintln!("installing {} in {}", PACKAGES.join(", "), environment.display());
    let venv = || {
        let mut c = Command::new("python3");
        c.args(["-m", "venv", "--clear"]).arg(environment);
        build::run(c)
    };
    if let Err(why) = venv() {
        if !build::install(&["python3", "python3-venv"])? {
            return Err(why);
        }
        venv()?;
    }
    let mut pip = Command::new(environment.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES);
    build::run(pip)
}
