//! A bundle that the agents cannot see on their own file system still runs.

use crate::{Result, cluster, guest, has_cgroups, is_root};
use smalti_tests::{Cluster, Config, Finished};
use std::process::Command;
use std::time::Duration;

#[test]
fn required_isolation_starts_where_the_kernel_enforces_limits_and_says_which() -> Result {
    if !has_cgroups() {
        eprintln!("NOT TESTED: cgroups need root");
        return Ok(());
    }
    let c = Cluster::start(Config { isolation: "required".into(), ..Config::default() })?;
    let agents = c.json(&["agents"])?;
    for layer in ["cgroup_cpu", "cgroup_memory", "cgroup_pids"] {
        let state = agents[0]["isolation"][layer].as_str().unwrap_or("");
        assert!(state.starts_with("on"), "{layer}: {agents}");
    }
    assert_eq!(c.smalti(&["run", &guest(&c, "hello")?])?.code, 0);
    Ok(())
}

#[test]
fn a_client_in_another_mount_namespace_can_run_its_bundle() -> Result {
    if !is_root() {
        eprintln!("NOT TESTED: mount namespaces need root");
        return Ok(());
    }
    let c = cluster()?;
    // The bundle exists only on a tmpfs that the client's own mount namespace has.
    let hidden = c.dir().join("hidden");
    std::fs::create_dir(&hidden)?;
    let script = format!(
        "mount -t tmpfs none {0} && cp {1} {0}/app.wasm && exec {2} run {0}/app.wasm -- x",
        hidden.display(),
        guest(&c, "hello")?,
        c.paths.smalti().display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).env("SMALTI_MASTER", &c.address);
    let done = Finished::of(command, b"", Duration::from_secs(60))?;
    assert_eq!((done.code, done.stdout.as_str()), (0, "Hello from Smalti\nargument 0: x\n"), "{}", done.stderr);
    assert!(!hidden.join("app.wasm").exists());
    Ok(())
}
