//! Each limit has its own reason and exit code.

use crate::{Result, cluster, guest, has_cgroups, one_agent};
use smalti_tests::Cluster;

/// Runs `misbehave` and returns the exit code, the reason that `ps` shows and stderr.
fn misbehave(c: &Cluster, flags: &[&str], args: &[&str]) -> Result<(i32, String, String)> {
    let guest = guest(c, "misbehave")?;
    let done = c.smalti(&[&["run"], flags, &[&*guest, "--"], args].concat())?;
    let tasks = c.json(&["ps", "--all"])?;
    let last = tasks.as_array().and_then(|t| t.last());
    let reason = last.map(|t| t["reason"].as_str().unwrap_or("").to_owned()).unwrap_or_default();
    Ok((done.code, reason, done.stderr))
}

#[test]
fn a_trap_is_134() -> Result {
    let c = one_agent("1")?;
    let (code, reason, stderr) = misbehave(&c, &[], &["trap"])?;
    assert_eq!((code, reason.as_str()), (134, "TRAP"), "{stderr}");
    Ok(())
}

#[test]
fn a_time_limit_is_124_in_a_loop_and_in_a_sleep() -> Result {
    for what in [&["loop"][..], &["sleep", "3600000"]] {
        let c = one_agent("1")?;
        let (code, reason, stderr) = misbehave(&c, &["--timeout", "300ms"], what)?;
        assert_eq!((code, reason.as_str()), (124, "TIME_LIMIT"), "{stderr}");
    }
    Ok(())
}

#[test]
fn a_memory_limit_is_137_and_stops_at_the_limit() -> Result {
    let c = one_agent("1")?;
    let (code, reason, stderr) = misbehave(&c, &["--mem", "32MiB"], &["eat-memory", "1000"])?;
    assert_eq!((code, reason.as_str()), (137, "MEMORY_LIMIT"), "{stderr}");
    let tasks = c.json(&["ps", "--all"])?;
    let peak = tasks[0]["usage"]["peak_memory"].as_u64().unwrap_or(0);
    assert!(peak > 16 << 20 && peak <= 32 << 20, "{peak}");
    let (code, ..) = misbehave(&c, &["--mem", "32MiB"], &["eat-memory", "10"])?;
    assert_eq!(code, 0);
    Ok(())
}

#[test]
fn an_output_limit_is_137() -> Result {
    let c = one_agent("1")?;
    let (code, reason, stderr) = misbehave(&c, &["--output-limit", "100KiB"], &["print"])?;
    assert_eq!((code, reason.as_str()), (137, "OUTPUT_LIMIT"), "{stderr}");
    Ok(())
}

#[test]
fn fuel_is_deterministic_and_its_limit_is_137() -> Result {
    let c = one_agent("1")?;
    let (code, reason, stderr) = misbehave(&c, &["--fuel", "1000000"], &["loop"])?;
    assert_eq!((code, reason.as_str()), (137, "FUEL_LIMIT"), "{stderr}");
    let mut used = Vec::new();
    for _ in 0..2 {
        let c = one_agent("1")?;
        assert_eq!(misbehave(&c, &["--fuel", "100000000"], &["exit", "0"])?.0, 0);
        used.push(c.json(&["ps", "--all"])?[0]["usage"]["fuel"].as_u64());
    }
    assert!(used[0].is_some() && used[0] == used[1], "{used:?}");
    Ok(())
}

#[test]
fn exit_codes_above_125_are_134() -> Result {
    let c = cluster()?;
    let guest = guest(&c, "misbehave")?;
    for (given, expected) in [("0", 0), ("1", 1), ("125", 125), ("126", 134), ("255", 134)] {
        let done = c.smalti(&["run", &guest, "--", "exit", given])?;
        assert_eq!(done.code, expected, "exit {given}: {}", done.stderr);
    }
    Ok(())
}

#[test]
fn cpu_is_limited_by_the_kernel() -> Result {
    if !has_cgroups() {
        eprintln!("NOT TESTED: cpu limits need cgroups, and this is not root");
        return Ok(());
    }
    let c = one_agent("1")?;
    let guest = guest(&c, "misbehave")?;
    let done = c.smalti(&["run", "--cpus", "0.2", "--timeout", "2s", &guest, "--", "loop"])?;
    assert_eq!(done.code, 124, "{}", done.stderr);
    let usage = c.json(&["ps", "--all"])?[0]["usage"].clone();
    let (cpu, wall) = (usage["cpu_us"].as_f64().unwrap_or(0.0), usage["wall_us"].as_f64().unwrap_or(1.0));
    assert!((0.05..0.3).contains(&(cpu / wall)), "asked for 0.2 of a core, used {}", cpu / wall);
    Ok(())
}
