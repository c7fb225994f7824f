//! With the real executor, real groups and namespaces where this machine has them.

mod adopt;
mod guests;
mod leases;
mod walls;

use super::*;
use crate::cgroup::Mode;
use smalti_types::MilliCpus;
use std::time::Instant;

const PATIENCE: Duration = Duration::from_secs(60);

fn executor() -> PathBuf {
    locate_executor(None).unwrap_or_else(|e| panic!("{e}"))
}

struct World {
    dir: tempfile::TempDir,
    cgroups: Cgroups,
}

impl Drop for World {
    /// After a failed test too.
    fn drop(&mut self) {
        if let Err(e) = self.cgroups.cleanup_stale(&[], PATIENCE).and_then(|_| self.cgroups.close()) {
            eprintln!("NOT CLEANED UP: {e}");
        }
    }
}

impl World {
    fn new(test: &str, mode: Mode) -> Self {
        let (cgroups, layers) = Cgroups::open(mode, &format!("test-{test}-{}", std::process::id())).unwrap();
        if mode != Mode::None && layers.iter().any(|l| !l.on) {
            eprintln!("NOT ALL LIMITS ARE TESTED HERE: {layers:?}");
        }
        Self { dir: tempfile::tempdir().unwrap(), cgroups }
    }

    fn launcher(&self, change: impl FnOnce(&mut Options)) -> Launcher {
        let mut options = Options::new(executor(), self.dir.path().join("executors"), self.cgroups.clone());
        change(&mut options);
        Launcher::new(options)
    }

    /// Of one that serves one task.
    fn pooled(&self) -> ExecutorSpec {
        ExecutorSpec { kind: ExecutorKind::Pooled, slots: 1, ..self.spec() }
    }

    fn spec(&self) -> ExecutorSpec {
        ExecutorSpec {
            id: ExecutorId::new("e1").unwrap(),
            kind: ExecutorKind::Shared,
            slots: 3,
            max_memory: Bytes::mib(512),
            memory: Bytes::mib(512),
        }
    }

    /// Groups are removed behind the exit: waits until the agent's own can be.
    async fn all_gone(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(e) = self.cgroups.close() {
            assert!(Instant::now() < deadline, "{e}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}

#[tokio::test]
async fn an_executor_starts_in_its_groups_and_ends_when_asked() {
    let world = World::new("start", Mode::Auto);
    let running = world.launcher(|_| {}).start(world.spec()).await.unwrap();
    assert_eq!(running.hello.slots.len(), 3);
    if world.cgroups.version().is_some() {
        running.group.set_slot_cpus(2, MilliCpus(500)).unwrap();
        let processes = running.group.processes().unwrap();
        assert!(processes.contains(&running.process.pid()) && processes.len() == 2, "{processes:?}");
        let worker = processes.into_iter().find(|p| *p != running.process.pid()).unwrap();
        // It is not dumpable: nobody but root may look.
        match std::fs::read_to_string(format!("/proc/{worker}/environ")) {
            Ok(text) => assert_eq!(text, "", "an executor inherits nothing of the agent's environment"),
            Err(e) => {
                assert!(!nix::unistd::geteuid().is_root() && e.kind() == std::io::ErrorKind::PermissionDenied, "{e}");
                eprintln!("NOT TESTED: that an executor inherits nothing of the agent's environment; only root can see it");
            }
        }
        let in_slots = std::fs::read_dir(format!("/proc/{worker}/task")).unwrap().flatten().filter(|task| {
            let groups = std::fs::read_to_string(task.path().join("cgroup")).unwrap();
            groups.lines().any(|l| l.contains("e1/slot-"))
        });
        assert_eq!(in_slots.count(), 3);
    }
    let exit = running.stop(PATIENCE).await;
    assert_eq!((exit.code, exit.signal, exit.oom), (Some(0), None, false), "{exit:?}");
    assert_eq!(exit.cause, "exited with code 0");
    world.all_gone().await;
}

#[tokio::test]
async fn a_worker_that_is_killed_is_reported_with_its_signal() {
    for pooled in [false, true] {
        let world = World::new("killed", Mode::Auto);
        let spec = if pooled { world.pooled() } else { world.spec() };
        let running = world.launcher(|_| {}).start(spec).await.unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.worker), nix::sys::signal::Signal::SIGKILL).unwrap();
        let exit = running.exit.await;
        assert_eq!((exit.cause.as_str(), exit.signal), ("killed by signal 9 (SIGKILL)", Some(9)));
        world.all_gone().await;
    }
}

#[tokio::test]
async fn a_signal_of_the_filters_kind_from_outside_is_no_denied_call() {
    for (namespaces, pooled) in [(true, false), (false, false), (true, true), (false, true)] {
        let world = World::new("sigsys", Mode::None);
        let spec = if pooled { world.pooled() } else { world.spec() };
        let running = world.launcher(|o| o.namespaces = namespaces).start(spec).await.unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.worker), nix::sys::signal::Signal::SIGSYS).unwrap();
        let exit = running.exit.await;
        assert_eq!((exit.cause.as_str(), exit.signal), ("killed by signal 31 (SIGSYS)", Some(31)), "{namespaces} {pooled}");
    }
}

#[tokio::test]
async fn killing_takes_everything_with_it_with_and_without_namespaces_and_groups() {
    for (mode, namespaces) in [(Mode::Auto, true), (Mode::Auto, false), (Mode::None, true), (Mode::None, false)] {
        let world = World::new("kill", mode);
        let running = world.launcher(|o| o.namespaces = namespaces).start(world.spec()).await.unwrap();
        assert!(namespaces || !running.process.pid_namespace());
        assert_eq!(running.isolation["pid_namespace"] == "on", running.process.pid_namespace(), "{:?}", running.isolation);
        let init = running.process.pid();
        let worker = running.worker;
        running.process.kill();
        let exit = running.exit.await;
        assert_eq!(exit.code, None, "{exit:?}");
        let deadline = Instant::now() + PATIENCE;
        while is_alive(worker) || is_alive(init) {
            assert!(Instant::now() < deadline, "{mode:?} {namespaces}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.all_gone().await;
    }
}

#[tokio::test]
async fn a_long_data_directory_is_no_obstacle() {
    let world = World::new("long", Mode::None);
    let long = world.dir.path().join("x".repeat(200));
    let running = world.launcher(|o| o.executors_dir.clone_from(&long)).start(world.spec()).await.unwrap();
    assert_eq!(running.stop(PATIENCE).await.code, Some(0));
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_leaves_nothing() {
    let world = World::new("fails", Mode::Auto);
    let start = async |path: &str| {
        // A name each: what is left of a failed start is removed behind its back, by name.
        let id = ExecutorId::new(path.replace('/', "_")).unwrap();
        let spec = ExecutorSpec { id, ..world.spec() };
        world.launcher(|o| o.executor_path = path.into()).start(spec).await.unwrap_err().to_string()
    };
    let text = start("/nowhere/smalti-executor").await;
    assert!(text.contains("starting /nowhere/smalti-executor"), "{text}");
    let text = start("/bin/true").await;
    assert!(text.contains("executor _bin_true"), "{text}");
    let text = start("/bin/echo").await;
    assert!(text.contains("starting /bin/echo"), "{text}");
    let spec = ExecutorSpec { slots: 0, ..world.spec() };
    assert!(matches!(world.launcher(|_| {}).start(spec).await, Err(Error::Implausible { .. })));
    // A directory that cannot be made.
    std::fs::write(world.dir.path().join("file"), "").unwrap();
    let blocked = world.dir.path().join("file/executors");
    assert!(matches!(world.launcher(|o| o.executors_dir = blocked).start(world.spec()).await, Err(Error::Io { .. })));
    world.all_gone().await;
}

#[tokio::test]
async fn a_start_that_takes_too_long_is_cut_off() {
    let world = World::new("slow", Mode::Auto);
    let script = world.dir.path().join("slow");
    std::fs::write(&script, "#!/bin/sh\nread forever\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let change = |o: &mut Options| {
        o.executor_path.clone_from(&script);
        o.start_timeout = Duration::from_millis(50);
    };
    let error = world.launcher(change).start(world.spec()).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    world.all_gone().await;
}
