//! Instructions of the pure cores, counted by valgrind's callgrind and compared with what is committed: a regression check that no busy
//! machine can upset. With `--allocations`, what they allocate, by valgrind's DHAT.
//!
//! Each scenario (see `bench/src/cores.rs`) runs twice, with few rounds and with more: the difference, divided, is one round, and what
//! comes before the first does not count. What depends on the processor is kept out: no hashing is in the scenarios, the C library is told
//! to choose its plainest copies, and valgrind shows every program the same processor but for AVX2. The tolerance is for the rest, and for
//! other versions of the C library.

use crate::build;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is committed.
const COMMITTED: &str = "bench/instructions.txt";
/// Rounds of the two runs.
const ROUNDS: (u64, u64) = (100, 300);
/// As far as a count may be from the committed one, in percent.
const TOLERANCE: f64 = 3.0;
/// Copies and comparisons that every x86-64 has: elsewhere the words mean nothing and are ignored.
const TUNABLES: &str =
    "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-EVEX,-BMI2,-ERMS,-FSRM,-SSE4_2,-SSSE3,-AVX_Fast_Unaligned_Load";

/// Options of `cargo xtask instructions`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Write the counts into the committed file instead of comparing
    #[arg(long)]
    bless: bool,
    /// Show what a round allocates, too; nothing is compared
    #[arg(long)]
    allocations: bool,
    /// Only these scenarios
    only: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        let installed = build::install(&["valgrind"])?;
        ensure!(installed, "valgrind is not installed. On Debian: apt install valgrind");
    }
    let mut c = build::cargo("build");
    c.args(["--quiet", "--package", "smalti-bench", "--bin", "smalti-instructions"]);
    build::run(c)?;
    let root = smalti_tests::workspace_root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let program = target.join("release/smalti-instructions");
    let list = output(Command::new(&program))?;
    let scenarios: Vec<(&str, &str)> = list.0.lines().filter_map(|l| l.split_once('\t')).collect();
    for name in &options.only {
        ensure!(scenarios.iter().any(|(n, _)| n == name), "there is no scenario {name}; there are:\n{}", list.0);
    }
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|n| n == name);
    let file = root.join(COMMITTED);
    let committed = read(&file)?;
    let mut counts = committed.clone();
    let mut wrong = Vec::new();
    for (name, what) in scenarios.iter().filter(|(name, _)| wanted(name)) {
        let count = per_round(&program, name, "callgrind", |text| last_number(text, "Collected : "))?;
        let before = committed.get(*name).copied();
        let change = before.map(|b| (count / b - 1.0) * 100.0);
        println!("{name:<24} {count:>12.0} instructions{}   {what}", change.map(|c| format!(" {c:+6.2} %")).unwrap_or_default());
        if change.is_none_or(|c| c.abs() > TOLERANCE) {
            wrong.push(format!("{name}: {count:.0}, committed are {}", before.map_or_else(|| "none".into(), |b| format!("{b:.0}"))));
        }
        if options.allocations {
            let blocks = per_round(&program, name, "dhat", |text| last_number(text.lines().find(|l| l.contains("Total:"))?, " bytes in "))?;
            let bytes = per_round(&program, name, "dhat", |text| last_number(text, "Total:"))?;
            println!("{:<24} {blocks:>12.1} allocations, {bytes:.0} bytes", "");
        }
        counts.insert((*name).to_owned(), count);
    }
    if options.bless {
        counts.retain(|name, _| scenarios.iter().any(|(n, _)| n == name));
        return write(&file, &counts);
    }
    ensure!(
        wrong.is_empty(),
        "{} of a round's instructions differ by more than {TOLERANCE} % from {COMMITTED}:\n{}\nWhere that is meant: cargo xtask instructions --bless, \
         and commit the file",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}

/// What one round costs by the words of a valgrind tool.
fn per_round(program: &Path, scenario: &str, tool: &str, read: impl Fn(&str) -> Option<f64>) -> Result<f64> {
    let total = |rounds: u64| -> Result<f64> {
        let mut c = Command::new("valgrind");
        c.arg(format!("--tool={tool}")).arg(format!("--{tool}-out-file=/dev/null"));
        c.arg(program).args([scenario, &rounds.to_string()]).env("GLIBC_TUNABLES", TUNABLES).env("RUST_BACKTRACE", "0");
        let (_, words) = output(c)?;
        read(&words).with_context(|| format!("valgrind --tool={tool} does not say what {scenario} cost: {words}"))
    };
    #[expect(clippy::cast_precision_loss, reason = "a few hundred rounds")]
    let rounds = (ROUNDS.1 - ROUNDS.0) as f64;
    Ok((total(ROUNDS.1)? - total(ROUNDS.0)?) / rounds)
}

/// The number after the last `key`, with or without commas.
fn last_number(text: &str, key: &str) -> Option<f64> {
    let digits: String =
        text.rsplit_once(key)?.1.trim_start().chars().take_while(|c| c.is_ascii_digit() || *c == ',').filter(|c| *c != ',').collect();
    digits.parse().ok()
}

fn output(mut command: Command) -> Result<(String, String)> {
    let done = command.output().with_context(|| format!("running {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !done.status.success() {
        bail!("{command:?} ended with {}: {}", done.status, text(&done.stderr));
    }
    Ok((text(&done.stdout), text(&done.stderr)))
}

fn read(file: &Path) -> Result<BTreeMap<String, f64>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(e).with_context(|| format!("reading {}", file.display())),
    };
    let line = |l: &str| -> Result<(String, f64)> {
        let (name, count) = l.split_once(' ').with_context(|| format!("{}: {l:?} is not a name and a number", file.display()))?;
        Ok((name.to_owned(), count.trim().parse().with_context(|| format!("{}: {l:?}", file.display()))?))
    };
    text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).map(line).collect()
}

fn write(file: &Path, counts: &BTreeMap<String, f64>) -> Result<()> {
    let mut text =
        String::from("# Instructions of one round of each scenario of bench/src/cores.rs. Written by: cargo xtask instructions --bless\n");
    for (name, count) in counts {
        let _ = writeln!(text, "{name} {count:.0}");
    }
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valgrinds_words_are_understood() {
        let callgrind = "==1== Events    : Ir\n==1== Collected : 12345678\n==1== \n==1== I   refs:      12,345,678\n";
        assert_eq!(last_number(callgrind, "Collected : "), Some(12_345_678.0));
        let dhat = "==1== Total:     1,234,567 bytes in 8,901 blocks\n==1== At t-gmax: 5 bytes in 6 blocks\n";
        assert_eq!(last_number(dhat.lines().next().unwrap(), " bytes in "), Some(8_901.0));
        assert_eq!(last_number(dhat, "Total:"), Some(1_234_567.0));
        assert_eq!(last_number("nothing", "Collected : "), None);
    }
}
