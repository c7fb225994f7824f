//! A task's disk: there when asked for, of the size asked for, as new for each guest, and no way out of it.

use crate::{Result, cluster, is_root};
use anyhow::Context;
use smalti_tests::{AgentConfig, Cluster, Config};

/// One agent with this backend, and the guest as module and as component. `None`, said aloud: not to be had on this machine.
fn with_backend(backend: &str) -> Result<Option<(Cluster, [String; 2])>> {
    if !is_root() {
        eprintln!("NOT TESTED: disks need the right to mount");
        return Ok(None);
    }
    if backend == "loop" && !std::path::Path::new("/dev/loop-control").exists() {
        eprintln!("NOT TESTED: there are no loop devices here");
        return Ok(None);
    }
    let agent = AgentConfig { flags: vec!["--disk-backend".into(), backend.into()], ..AgentConfig::default() };
    let c = Cluster::start(Config { agents: vec![agent], ..Config::default() })?;
    let guests = [c.paths.guest("scratch")?, c.paths.component("scratch")?].map(|p| p.display().to_string());
    Ok(Some((c, guests)))
}

fn number(text: &str) -> Result<u64> {
    text.split_whitespace().next().and_then(|n| n.parse().ok()).with_context(|| format!("no number in {text:?}"))
}

fn is_bounded_and_as_new(backend: &str) -> Result {
    let Some((c, guests)) = with_backend(backend)? else { return Ok(()) };
    let disk = |c: &serde_json::Value| c[0]["isolation"]["disk"].as_str().unwrap_or_default().to_owned();
    assert!(disk(&c.json(&["agents"])?).starts_with("on ("), "{:?}", c.json(&["agents"])?);
    for guest in &guests {
        let run = |args: &[&str]| c.smalti(&[&["run", "--disk", "4MiB", guest, "--"], args].concat());
        let kept = run(&["keep", "name", "text"])?;
        assert_eq!(kept.stdout, "/scratch of 4194304 bytes: name text\n", "{}", kept.stderr);
        let next = run(&["list"])?;
        assert_eq!(next.stdout, "/scratch of 4194304 bytes: \n", "{}", next.stderr);
        let filled = run(&["fill"])?;
        assert_eq!(filled.code, 0, "{}", filled.stderr);
        let bytes = number(&filled.stdout)?;
        assert!(((4 << 20) - (64 << 10)..=(4 << 20) + 4096).contains(&bytes), "{bytes}");
        let files = number(&run(&["files"])?.stdout)?;
        assert!((900..=1100).contains(&files), "{files}");
        let failed = run(&["need", "10000000"])?;
        assert!(failed.code == 137 && failed.stderr.contains("the disk limit of 4MiB was reached"), "{} {}", failed.code, failed.stderr);
        // What was asked for fits to the byte; what ext4 has beyond it is one block.
        let enough = run(&["need", "4194304"])?;
        assert_eq!(enough.code, 0, "{}", enough.stderr);
        let beyond = run(&["need", "4198401"])?;
        assert!(beyond.code == 137 && beyond.stderr.contains("the disk limit of 4MiB was reached"), "{} {}", beyond.code, beyond.stderr);
        assert_eq!(run(&["list"])?.stdout, "/scratch of 4194304 bytes: \n");
        // Elsewhere, and none when none is asked for.
        let placed = c.smalti(&["run", "--disk", "1MiB:/var/data", guest, "--", "keep", "a", "b"])?;
        assert_eq!(placed.stdout, "/var/data of 1048576 bytes: a b\n", "{}", placed.stderr);
        assert_ne!(c.smalti(&["run", guest, "--", "keep", "a", "b"])?.code, 0);
    }
    // The last task's reason, for machines.
    let job = c.ok(&["submit", "--disk", "1MiB", &guests[0], "--", "need", "3000000"])?;
    c.smalti(&["wait", job.trim()])?;
    let tasks = c.json(&["ps", "--all"])?;
    let reasons: Vec<_> = tasks.as_array().context("a list")?.iter().filter_map(|t| t["reason"].as_str()).collect();
    assert!(reasons.contains(&"DISK_LIMIT"), "{reasons:?}");
    Ok(())
}

#[test]
fn a_disk_on_a_loop_device_is_bounded_and_as_new() -> Result {
    is_bounded_and_as_new("loop")
}

#[test]
fn a_disk_in_memory_is_bounded_and_as_new() -> Result {
    is_bounded_and_as_new("tmpfs")
}

#[test]
fn each_item_of_an_array_has_its_disk_as_new() -> Result {
    let Some((c, guests)) = with_backend("auto")? else { return Ok(()) };
    for guest in &guests {
        let done = c.smalti(&["map", "--items", "40", "--cpus", "0.5", "--disk", "1MiB", guest, "--", "keep", "f", "x"])?;
        assert_eq!(done.stdout, "/scratch of 1048576 bytes: f x\n".repeat(40), "{}", done.stderr);
    }
    // In executors of their own, one after the other on the same disk.
    let own = ["map", "--items", "8", "--cpus", "0.5", "--isolation", "process", "--disk", "1MiB", &guests[0], "--", "keep", "f", "x"];
    let done = c.smalti(&own)?;
    assert_eq!(done.stdout, "/scratch of 1048576 bytes: f x\n".repeat(8), "{}", done.stderr);
    let done = c.smalti(&["run", "--isolation", "process", "--disk", "1MiB", &guests[0], "--", "fill"])?;
    assert_eq!(done.code, 0, "{}", done.stderr);
    let done = c.smalti(&["run", "--isolation", "process", "--disk", "1MiB", &guests[0], "--", "list"])?;
    assert_eq!(done.stdout, "/scratch of 1048576 bytes: \n", "{}", done.stderr);
    // A full one is empty again too.
    let done = c.smalti(&["map", "--items", "6", "--cpus", "0.5", "--disk", "1MiB", &guests[0], "--", "fill"])?;
    for line in done.stdout.lines() {
        assert!(number(line)? >= (1 << 20) - (64 << 10), "{}", done.stdout);
    }
    assert_eq!(done.stdout.lines().count(), 6, "{}", done.stderr);
    Ok(())
}

#[test]
fn no_path_leads_out_of_a_disk() -> Result {
    let Some((c, guests)) = with_backend("auto")? else { return Ok(()) };
    for guest in &guests {
        let done = c.smalti(&["run", "--disk", "1MiB", guest, "--", "escape"])?;
        assert!(done.stdout.ends_with("tries, reached []\n") && number(&done.stdout)? > 100, "{} {}", done.stdout, done.stderr);
        // Without any directory there is nothing to start from either.
        let done = c.smalti(&["run", guest, "--", "escape"])?;
        assert!(done.stdout.ends_with("tries, reached []\n"), "{} {}", done.stdout, done.stderr);
    }
    Ok(())
}

#[test]
fn inputs_stay_as_they_are_unless_they_lie_on_the_disk() -> Result {
    let Some((c, guests)) = with_backend("auto")? else { return Ok(()) };
    let input = c.dir().join("input.txt");
    std::fs::write(&input, "original")?;
    let at = |path: &str| format!("{path}={}", input.display());
    for guest in &guests {
        let done = c.smalti(&["run", "--disk", "1MiB", "--input", &at("/data/in.txt"), guest, "--", "change", "/data/in.txt"])?;
        assert_eq!(done.stdout, "changed []\n", "{}", done.stderr);
        let done = c.smalti(&["run", "--disk", "1MiB", "--input", &at("/scratch/in.txt"), guest, "--", "change", "/scratch/in.txt"])?;
        assert!(done.stdout.contains("write") && done.stdout.contains("rename"), "{} {}", done.stdout, done.stderr);
    }
    assert_eq!(std::fs::read(&input)?, b"original");
    std::fs::write(&input, vec![b'x'; 3 << 20])?;
    let done = c.smalti(&["run", "--disk", "1MiB", "--input", &at("/scratch/in.txt"), &guests[0], "--", "list"])?;
    assert!(done.code != 0 && done.stderr.contains("the disk limit of 1MiB was reached"), "{} {}", done.code, done.stderr);
    Ok(())
}

#[test]
fn an_agent_without_disks_says_so_and_gets_no_task_that_needs_one() -> Result {
    let agent = AgentConfig { flags: vec!["--disk-backend".into(), "none".into()], ..AgentConfig::default() };
    let c = Cluster::start(Config { agents: vec![agent], ..Config::default() })?;
    let agents = c.json(&["agents"])?;
    assert_eq!(agents[0]["total"]["disk"].as_u64(), Some(0), "{agents}");
    assert_eq!(agents[0]["isolation"]["disk"], "off: turned off with --disk-backend none");
    let done = c.smalti(&["run", "--disk", "1MiB", &c.paths.guest("hello")?.display().to_string()])?;
    assert_eq!(done.code, 125, "{}", done.stderr);
    assert!(done.stderr.contains("disk"), "{}", done.stderr);
    Ok(())
}

#[test]
fn nothing_of_disks_is_left_when_the_cluster_is_gone() -> Result {
    let c = cluster()?;
    let dir = c.dir().display().to_string();
    if is_root() {
        let guest = c.paths.guest("scratch")?.display().to_string();
        assert_eq!(c.smalti(&["run", "--disk", "1MiB", &guest, "--", "fill"])?.code, 0);
    }
    drop(c);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(&dir), "{mounts}");
    crate::eventually("no loop device has a file of the cluster", || {
        let mut backing = Vec::new();
        for entry in std::fs::read_dir("/sys/block")?.flatten() {
            backing.push(std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default());
        }
        Ok(backing.iter().all(|file| !file.contains(&dir)))
    })
}
