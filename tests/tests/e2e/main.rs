//! End-to-end tests: what a user types, against real processes. One module per subject.

mod arrays;
mod bad_input;
mod caches;
mod cgroup_v2;
mod classic;
mod dev;
mod disk;
mod executors;
mod failover;
mod guests;
mod hostile;
mod hostile_generate;
mod hostile_limits;
mod hostile_table;
mod inputs;
mod isolation;
mod jobs;
mod kill;
mod limits;
mod lying_executor;
mod network;
mod noisy;
mod output;
mod output_store;
mod peers;
mod process_class;
mod resources;
mod restart;
mod rights;
mod upgrade;

use smalti_tests::{AgentConfig, Cluster, Config};

type Result<T = ()> = anyhow::Result<T>;

/// Two agents of two cpus.
fn cluster() -> Result<Cluster> {
    Cluster::start(Config::default())
}

/// One agent of `cpus` and 2 GiB.
fn one_agent(cpus: &str) -> Result<Cluster> {
    Cluster::start(Config { agents: vec![AgentConfig { cpus: cpus.into(), ..AgentConfig::default() }], ..Config::default() })
}

/// The path of an example guest as text.
fn guest(cluster: &Cluster, name: &str) -> Result<String> {
    Ok(cluster.paths.guest(name)?.display().to_string())
}

/// Waits until `condition` holds; fails after a minute, times the tests' patience, with `what`.
fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result {
    let until = std::time::Instant::now() + smalti_tests::patience(std::time::Duration::from_secs(60));
    while !condition()? {
        anyhow::ensure!(std::time::Instant::now() < until, "never came true: {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(())
}

/// Whether this process may make control groups: as root, or in a part of a v2 hierarchy that belongs to its user.
fn has_cgroups() -> bool {
    is_root() || cgroup_v2::playground().is_some()
}

/// Whether this process may do what only root may.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
