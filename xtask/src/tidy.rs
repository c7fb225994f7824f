//! Rules of the repository that no compiler checks, each with its reason.

use anyhow::{Context, Result, bail};
use smalti_tests::workspace_root;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the pure cores may depend on: no runtime, no I/O, no clock, no randomness (design: "Cargo enforces the purity").
const PURE_DEPENDENCIES: [&str; 12] = [
    "smalti-types",
    "smalti-framework-sdk-core",
    "thiserror",
    "thiserror-impl",
    "serde",
    "serde_core",
    "serde_derive",
    "blake3",
    "proc-macro2",
    "quote",
    "syn",
    "unicode-ident",
];
/// What BLAKE3 itself is built from.
const PURE_LEAVES: [&str; 7] = ["arrayref", "arrayvec", "cfg-if", "constant_time_eq", "cpufeatures", "libc", "rustversion"];
const CORES: [&str; 4] = ["smalti-master-core", "smalti-agent-core", "smalti-framework-sdk-core", "smalti-scheduler-core"];
/// Words that a pure core has no use for, even from the standard library.
const IMPURE_WORDS: [&str; 7] = ["std::fs", "std::net", "std::thread", "Instant::now", "SystemTime", "HashMap", "tokio"];
/// A file that a reader can hold in the head (the median is far below).
const MAX_FILE_LINES: usize = 700;

pub(crate) fn run() -> Result<()> {
    let mut wrong = Vec::new();
    pure_dependencies(&mut wrong)?;
    sources(&mut wrong)?;
    if wrong.is_empty() {
        println!("tidy: nothing to say");
        return Ok(());
    }
    bail!("tidy:\n  {}", wrong.join("\n  "))
}

fn pure_dependencies(wrong: &mut Vec<String>) -> Result<()> {
    for core in CORES {
        let mut c = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        c.args(["tree", "--package", core, "--edges", "normal", "--prefix", "none", "--format", "{p}"]).current_dir(workspace_root());
        let output = c.output().context("running cargo tree")?;
        for name in String::from_utf8_lossy(&output.stdout).lines().filter_map(|l| l.split(' ').next()).filter(|n| !n.is_empty()) {
            if name != core && !PURE_DEPENDENCIES.contains(&name) && !PURE_LEAVES.contains(&name) {
                wrong.push(format!("{core} depends on {name}: the cores decide and do nothing else; let a shell do it"));
            }
        }
    }
    Ok(())
}

fn sources(wrong: &mut Vec<String>) -> Result<()> {
    for path in tracked("*.rs")? {
        let text = std::fs::read_to_string(workspace_root().join(&path)).with_context(|| path.display().to_string())?;
        if !text.starts_with("//!") && !path.ends_with("build.rs") {
            wrong.push(format!("{}: begins without `//!`: say what the module does, owns and deliberately does not do", path.display()));
        }
        let lines = text.lines().count();
        if lines > MAX_FILE_LINES {
            wrong.push(format!("{}: {lines} lines; split it below {MAX_FILE_LINES}", path.display()));
        }
        if is_core(&path) {
            for word in IMPURE_WORDS.iter().filter(|w| text.contains(**w)) {
                wrong.push(format!("{}: `{word}` in a pure core", path.display()));
            }
        }
    }
    Ok(())
}

/// Whether it is a core's own code. Its tests may ask a clock how long a step took; the step itself may not.
fn is_core(path: &Path) -> bool {
    let within = |name: &str| path.components().any(|c| c.as_os_str() == name);
    within("core") && within("src") && !within("tests")
}

fn tracked(pattern: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("git").args(["ls-files", pattern]).current_dir(workspace_root()).output().context("running git ls-files")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect())
}
