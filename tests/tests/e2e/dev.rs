//! `smalti dev`: a cluster in one terminal, gone when it ends.

use crate::{Result, eventually};
use nix::sys::signal::Signal;
use smalti_test_ports::Ports;
use smalti_tests::{Finished, Paths, Process};
use std::process::Command;
use std::time::Duration;

fn start(dir: &std::path::Path, port: &Ports, flags: &[&str]) -> Result<(Process, String)> {
    let address = port.address().to_string();
    let mut command = Command::new(Paths::find()?.smalti());
    command.args(["dev", "--listen", &address, "--cpus", "2", "--mem", "2GiB"]).args(flags).env("TMPDIR", dir);
    Ok((Process::spawn("dev", command, dir)?, address))
}

fn run(address: &str, args: &[&str]) -> Result<Finished> {
    let mut c = Command::new(Paths::find()?.smalti());
    c.args(args).env("SMALTI_MASTER", address);
    Finished::of(c, b"", Duration::from_secs(60))
}

fn ready(address: &str, agents: usize) -> Result {
    eventually("dev is ready", || {
        let done = run(address, &["agents", "--output", "json"])?;
        let list: serde_json::Value = serde_json::from_str(&done.stdout).unwrap_or_default();
        Ok(done.code == 0 && list.as_array().is_some_and(|l| l.len() == agents))
    })
}

#[test]
fn dev_runs_jobs_from_a_second_terminal_and_leaves_nothing() -> Result {
    let dir = tempfile::tempdir()?;
    let port = smalti_test_ports::take_one();
    let (mut dev, address) = start(dir.path(), &port, &[])?;
    ready(&address, 2)?;
    let hello = Paths::find()?.guest("hello")?.display().to_string();
    let done = run(&address, &["run", &hello])?;
    assert_eq!((done.code, done.stdout.as_str()), (0, "Hello from Smalti\n"), "{}", done.stderr);
    dev.signal(Signal::SIGINT)?;
    assert_eq!(dev.wait(Duration::from_secs(30))?.code(), Some(0), "{}", dev.log());
    let left: Vec<_> = std::fs::read_dir(dir.path())?.filter_map(|e| Some(e.ok()?.file_name())).filter(|n| n != "dev.log").collect();
    assert!(left.is_empty(), "{left:?}");
    assert_ne!(run(&address, &["agents"])?.code, 0);
    Ok(())
}

#[test]
fn a_dev_that_was_killed_takes_its_children_with_it_and_the_next_one_cleans_up() -> Result {
    let dir = tempfile::tempdir()?;
    let port = smalti_test_ports::take_one();
    let (mut dev, address) = start(dir.path(), &port, &["--agents", "1"])?;
    ready(&address, 1)?;
    dev.signal(Signal::SIGKILL)?;
    dev.wait(Duration::from_secs(10))?;
    eventually("its master is gone", || Ok(run(&address, &["agents"])?.code != 0))?;
    let (mut next, address) = start(dir.path(), &port, &["--agents", "1"])?;
    ready(&address, 1)?;
    next.signal(Signal::SIGTERM)?;
    next.wait(Duration::from_secs(30))?;
    let left: Vec<_> = std::fs::read_dir(dir.path())?.filter_map(|e| Some(e.ok()?.file_name())).filter(|n| n != "dev.log").collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}
