//! The official WASI test suite, preview 1, through `smalti run` on a cluster of real processes: a table of what passed, and
//! with `--reference` the same programs under another runtime beside it. See `docs/wasi-testsuite.md`.
//!
//! Owns the translation of the suite's JSON to a command line. Nothing of the suite is in this repository.

mod spec;

use crate::build;
use anyhow::{Context, Result, bail, ensure};
use smalti_tests::{AgentConfig, Cluster, Config, Finished};
use spec::Spec;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What the suite calls preview 1; its directories are named so.
const TARGET: &str = "wasm32-wasip1";
/// Enough for every program of the suite.
const DISK: &str = "16MiB:/";
/// No program of the suite takes a second.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One program with what it should do.
#[derive(Debug)]
struct Case {
    name: String,
    wasm: PathBuf,
    spec: Spec,
}

/// How one run ended, and what was wrong with it.
type Verdict = std::result::Result<(), String>;

/// Runs all programs below `suite`, and with `reference` (a command line to which `--dir`, `--env`, program and arguments are
/// appended, as Wasmtime takes them) the same ones with that.
pub(crate) fn run(suite: &Path, reference: Option<&str>) -> Result<()> {
    build::everything()?;
    let cases = find(suite)?;
    ensure!(!cases.is_empty(), "no programs below {}: is it a checkout of the branch `prod/testsuite-base`?", suite.display());
    let agent = AgentConfig { cpus: "2".into(), ..AgentConfig::default() };
    let cluster = Cluster::start(Config { agents: vec![agent], ..Config::default() })?;
    let (mut passed, mut worse) = (0, Vec::new());
    for case in &cases {
        let ours = with_smalti(&cluster, case)?;
        let theirs = reference.map(|command| with_reference(command, case)).transpose()?;
        passed += usize::from(ours.is_ok());
        let mark = |verdict: &Verdict| if verdict.is_ok() { "passed" } else { "FAILED" };
        let beside = theirs.as_ref().map(mark).unwrap_or_default();
        println!("{:<60} {} {beside} {}", case.name, mark(&ours), ours.as_ref().err().map_or("", String::as_str));
        if ours.is_err() && theirs.is_none_or(|t| t.is_ok()) {
            worse.push(case.name.as_str());
        }
    }
    println!("{passed} of {} passed", cases.len());
    if !worse.is_empty() {
        bail!("{} failed{}: {}", worse.len(), if reference.is_some() { " that pass elsewhere" } else { "" }, worse.join(", "));
    }
    Ok(())
}

/// All programs for preview 1, sorted by name.
fn find(suite: &Path) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut directories = vec![suite.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))? {
            let path = entry?.path();
            let of_target = directory.file_name() == Some(OsStr::new(TARGET));
            if path.is_dir() && !of_target && path.file_name() != Some(OsStr::new(".git")) {
                directories.push(path);
            } else if of_target && path.extension() == Some(OsStr::new("wasm")) {
                let spec = Spec::beside(&path)?;
                let name = path.strip_prefix(suite).unwrap_or(&path).with_extension("").display().to_string();
                cases.push(Case { name, wasm: path, spec });
            }
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

/// A program with a root directory travels with it in an archive, and gets a copy of it as a disk at `/`.
fn with_smalti(cluster: &Cluster, case: &Case) -> Result<Verdict> {
    let bundle = match case.spec.root(&case.wasm) {
        Some(root) => archive(cluster.dir(), case, &root)?,
        None => case.wasm.clone(),
    };
    let mut args: Vec<String> = ["run", "--stdin", "none"].map(str::to_owned).to_vec();
    if case.spec.root.is_some() {
        args.extend(["--disk".to_owned(), DISK.to_owned()]);
    }
    for (name, value) in &case.spec.env {
        args.extend(["--env".to_owned(), format!("{name}={value}")]);
    }
    args.extend([bundle.display().to_string(), "--".to_owned()]);
    args.extend(case.spec.args.iter().cloned());
    let done = cluster.smalti(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(case.spec.judge(&done))
}

fn archive(dir: &Path, case: &Case, root: &Path) -> Result<PathBuf> {
    let path = dir.join("case.tar");
    let mut archive = tar::Builder::new(std::fs::File::create(&path)?);
    archive.append_dir_all(".", root).with_context(|| format!("packing {}", root.display()))?;
    archive.append_path_with_name(&case.wasm, "smalti-case.wasm")?;
    archive.into_inner()?;
    Ok(path)
}

fn with_reference(command: &str, case: &Case) -> Result<Verdict> {
    let mut words = command.split_whitespace();
    let mut command = Command::new(words.next().context("the reference runtime's command is empty")?);
    command.args(words);
    // The programs write: a copy for each.
    let copy = tempfile::tempdir()?;
    if let Some(root) = case.spec.root(&case.wasm) {
        copy_all(&root, copy.path())?;
        command.arg("--dir").arg(format!("{}::/", copy.path().display()));
    }
    for (name, value) in &case.spec.env {
        command.arg("--env").arg(format!("{name}={value}"));
    }
    command.arg(&case.wasm).args(&case.spec.args);
    Ok(case.spec.judge(&Finished::of(command, b"", TIMEOUT)?))
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            std::fs::create_dir(&target)?;
            copy_all(&path, &target)?;
        } else {
            std::fs::copy(&path, &target)?;
        }
    }
    Ok(())
}
