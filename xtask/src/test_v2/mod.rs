//! The suites on a pure cgroup v2 kernel: a machine under qemu with our own image and our own init.
//!
//! Host side: tools, kernels from Debian's packages, images, qemu, verdict. Machine side: [`init`], which is this same program
//! as process 1. Nothing is installed but qemu, and nothing outside `target/v2` is written.

mod cpio;
mod guest;
mod image;
mod kernel;
mod machine;
mod modules;
mod plan;
mod tools;

use crate::build;
use anyhow::{Context, Result, bail};
pub(crate) use guest::init;
pub(crate) use kernel::Series;
use machine::{Accelerator, Setup};
use plan::Programs;
use smalti_tests::{Paths, workspace_root};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Only this kernel; both otherwise
    #[arg(long)]
    kernel: Option<Series>,
    /// Only tests whose names contain this; repeatable
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Only what the kernel itself promises, in some minutes: groups, walls, cpu and memory limits, restarts under them
    #[arg(long, conflicts_with = "filter")]
    quick: bool,
    /// Keep the images in target/v2
    #[arg(long)]
    keep: bool,
    /// A Debian mirror to use instead of the one in the machine's apt sources
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    tools::ensure()?;
    let cache = Paths::target().join("v2");
    std::fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let series = options.kernel.map_or_else(|| vec![Series::V6_12, Series::V6_1], |one| vec![one]);
    let kernels = series.into_iter().map(|s| kernel::get(s, &cache, options.mirror.as_deref())).collect::<Result<Vec<_>>>()?;
    build::everything()?;
    let programs = programs()?;
    let init = std::env::current_exe().context("finding this program")?;
    let root = cache.join("root.ext4");
    image::root(&root, &cache.join("root"), &init, &built(&programs)?)?;
    let mut accelerator = None;
    let mut bad = Vec::new();
    for kernel in &kernels {
        let choice = if options.quick { plan::QUICK } else { plan::full(kernel.series) };
        let plan = plan::plan(choice, &programs, &workspace_root(), &options.filter);
        let first = cache.join(format!("{}.cpio", kernel.series.name()));
        std::fs::write(&first, image::first(&init, &modules::load_order(&kernel.modules)?, &plan)?)?;
        let setup = Setup { kernel, first: &first, root: &root, accelerator: Accelerator::Emulation };
        let accelerator = *accelerator.get_or_insert_with(|| choose(setup, &cache));
        let log = cache.join(format!("{}.log", kernel.series.name()));
        let run = || machine::run(Setup { accelerator, ..setup }, &log);
        let outcomes = run().or_else(|e| {
            // Kernels have been seen to fail at their start under emulation. One that fails because of a test does so again.
            if !e.to_string().contains("Kernel panic") {
                return Err(e);
            }
            println!("{}: the kernel panicked; it is started once more. {e:#}", kernel.series.name());
            run()
        })?;
        let passed: u32 = outcomes.iter().map(|o| o.passed).sum();
        if passed == 0 {
            bad.push(format!("{}: no test ran", kernel.series.name()));
        }
        bad.extend(
            outcomes
                .iter()
                .filter(|o| !o.is_good())
                .map(|o| format!("{}, {}: {}", kernel.series.name(), o.suite, [&o.failed[..], &o.wrong[..]].concat().join(", "))),
        );
        if !options.keep {
            std::fs::remove_file(&first)?;
        }
    }
    if !options.keep {
        std::fs::remove_file(&root)?;
    }
    if !bad.is_empty() {
        bail!("on cgroup v2:\n  {}\nWhole consoles: {}", bad.join("\n  "), cache.join("*.log").display());
    }
    println!("everything passed on cgroup v2");
    Ok(())
}

/// Hardware support where a machine comes up with it; the answer is kept until the host is started again.
fn choose(setup: Setup<'_>, cache: &Path) -> Accelerator {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let file = cache.join("kvm");
    let known = std::fs::read_to_string(&file).ok().and_then(|text| Some(text.strip_prefix(boot.as_str())? == "works"));
    let works = known.unwrap_or_else(|| {
        let works = machine::kvm_works(setup);
        let _ = std::fs::write(&file, format!("{boot}{}", if works { "works" } else { "does not work" }));
        works
    });
    let (accelerator, how) = if works { (Accelerator::Kvm, "with KVM") } else { (Accelerator::Emulation, "under software emulation") };
    println!("machines run {how}");
    accelerator
}

/// Builds the test programs, as `cargo xtask test` does, and finds them.
fn programs() -> Result<Programs> {
    let executor = test_programs(&["--package", "smalti-executor", "--lib"])?;
    // The features of the whole workspace, but only the targets that are needed: so nothing is built twice.
    let rest = test_programs(&["--workspace", "--exclude", "smalti-executor", "--lib", "--test", "e2e"])?;
    let find = |of: &[(String, PathBuf)], name: &str| {
        of.iter().find(|(n, _)| n == name).map(|(_, path)| path.clone()).with_context(|| format!("cargo built no test program {name}"))
    };
    Ok(Programs { agent: find(&rest, "smalti_agent")?, executor: find(&executor, "smalti_executor")?, e2e: find(&rest, "e2e")? })
}

/// Names and paths of test programs of a `cargo test`.
fn test_programs(packages: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut c = build::cargo("test");
    c.args(["--no-run", "--message-format=json-render-diagnostics"]).args(packages).stderr(Stdio::inherit());
    let output = c.output().context("running cargo test --no-run")?;
    if !output.status.success() {
        bail!("cargo test --no-run {} failed", packages.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(test_program).collect())
}

/// Pure: one of cargo's messages.
fn test_program(line: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let of_test = message["profile"]["test"].as_bool() == Some(true);
    let path = message["executable"].as_str().filter(|_| of_test)?;
    Some((message["target"]["name"].as_str()?.to_owned(), PathBuf::from(path)))
}

/// What the tests need of the build: test programs, what users install, examples, guests.
fn built(programs: &Programs) -> Result<Vec<PathBuf>> {
    let paths = Paths::find()?;
    let mut all = vec![programs.agent.clone(), programs.executor.clone(), programs.e2e.clone(), paths.smalti(), paths.executor()];
    let scheduler = paths.smalti().with_file_name("examples").join("scheduler");
    all.extend(scheduler.is_file().then_some(scheduler));
    let target = Paths::target();
    for guests in ["wasm32-wasip1", "wasm32-wasip2"] {
        let dir = target.join(guests).join("release");
        let entries = std::fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))?;
        all.extend(entries.filter_map(|e| e.ok()).map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "wasm")));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_in_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"e2e"},"profile":{"test":true},"executable":"/t/e2e-1"}"#;
        assert_eq!(test_program(line), Some(("e2e".into(), "/t/e2e-1".into())));
        assert_eq!(test_program(&line.replace("true", "false")), None);
        assert_eq!(test_program("not JSON"), None);
    }
}
