//! The walls, tried from inside by the executor's test instrument and from outside by reading `/proc`.

use super::*;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Layers that every executor of an agent that is root has on a current kernel.
const LAYERS: [&str; 13] = [
    "user_namespace",
    "mount_namespace",
    "pid_namespace",
    "ipc_namespace",
    "uts_namespace",
    "net_namespace",
    "own_uid",
    "capabilities",
    "no_new_privs",
    "seccomp",
    "empty_root",
    "core_dumps",
    "rlimits",
];

/// What becomes of one attempt.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// The kernel answers with this error.
    Fails(Errno),
    /// The filter ends the executor and names the call.
    Denied(&'static str, i64),
    /// It is allowed.
    Works,
}
use Outcome::{Denied, Fails, Works};

/// Every attempt that the instrument knows, with its outcome where no sockets are granted.
const ATTEMPTS: [(&str, Outcome); 34] = [
    ("open-passwd", Fails(Errno::ENOENT)),
    ("open-proc", Fails(Errno::ENOENT)),
    ("open-dev", Fails(Errno::ENOENT)),
    ("open-parent", Fails(Errno::ENOENT)),
    ("root-not-empty", Works),
    ("write-root", Fails(Errno::EROFS)),
    ("mkdir-root", Fails(Errno::EROFS)),
    ("mount", Denied("mount", libc::SYS_mount)),
    ("ptrace", Denied("ptrace", libc::SYS_ptrace)),
    ("kill-init", Denied("kill", libc::SYS_kill)),
    ("tgkill-init", Denied("tgkill", libc::SYS_tgkill)),
    ("socket", Denied("socket", libc::SYS_socket)),
    ("socket-unix", Denied("socket", libc::SYS_socket)),
    ("socket-packet", Denied("socket", libc::SYS_socket)),
    ("socket-udp", Denied("socket", libc::SYS_socket)),
    ("setuid", Denied("setuid", libc::SYS_setuid)),
    ("unshare-user", Denied("unshare", libc::SYS_unshare)),
    ("clone-process", Denied("clone", libc::SYS_clone)),
    ("clone-user", Denied("clone", libc::SYS_clone)),
    ("clone3", Fails(Errno::ENOSYS)),
    ("keyctl", Denied("keyctl", libc::SYS_keyctl)),
    ("bpf", Denied("bpf", libc::SYS_bpf)),
    ("perf", Denied("perf_event_open", libc::SYS_perf_event_open)),
    ("io-uring", Denied("io_uring_setup", libc::SYS_io_uring_setup)),
    ("timer", Works),
    ("timer-of-another-clock", Denied("timerfd_create", libc::SYS_timerfd_create)),
    ("execve", Denied("execve", libc::SYS_execve)),
    ("sigsys-handler", Denied("rt_sigaction", libc::SYS_rt_sigaction)),
    ("dumpable", Denied("prctl", libc::SYS_prctl)),
    ("tiocsti", Denied("ioctl", libc::SYS_ioctl)),
    ("map-executable", Denied("mmap", libc::SYS_mmap)),
    ("protect-writable-executable", Denied("mprotect", libc::SYS_mprotect)),
    ("truncate-huge", Fails(Errno::EFBIG)),
    ("open-raw-proc-root", Fails(Errno::ENOENT)),
];

/// Starts an executor that tries one thing, and waits for its end.
async fn attempt(world: &World, name: &str, kind: ExecutorKind, change: impl FnOnce(&mut Options)) -> Exit {
    let spec = ExecutorSpec { id: ExecutorId::new(format!("probe-{name}-{}", kind.as_str())).unwrap(), kind, slots: 1, ..world.spec() };
    let launcher = world.launcher(|o| {
        o.probe = Some(name.to_owned());
        change(o);
    });
    launcher.start(spec).await.unwrap().stop(PATIENCE).await
}

fn check(name: &str, outcome: Outcome, exit: &Exit) {
    match outcome {
        Fails(errno) => assert_eq!(exit.code, Some(errno as i32), "{name}: {exit:?}"),
        Works => assert_eq!(exit.code, Some(0), "{name}: {exit:?}"),
        Denied(call, number) => {
            assert_eq!(exit.cause, format!("ended by its system call filter: {call} ({number})"), "{name}");
            assert!(!exit.oom);
        }
    }
}

#[tokio::test]
async fn nothing_forbidden_works_from_inside_and_denied_calls_are_named() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOT TESTED as root: the attempts run as an ordinary user in a test of their own");
    }
    let world = World::new("attempts", Mode::None);
    for (name, outcome) in ATTEMPTS {
        check(name, outcome, &attempt(&world, name, ExecutorKind::Pooled, |_| {}).await);
    }
    let unknown = attempt(&world, "no-such-attempt", ExecutorKind::Shared, |_| {}).await;
    assert_eq!(unknown.code, Some(250), "an attempt that does not exist must not pass for one that failed");
    for kind in [ExecutorKind::Shared, ExecutorKind::Pooled] {
        let aborted = attempt(&world, "abort", kind, |_| {}).await;
        assert_eq!((aborted.cause.as_str(), aborted.signal), ("killed by signal 6 (SIGABRT)", Some(6)), "{kind:?}");
    }
}

#[tokio::test]
async fn only_a_networked_executor_makes_sockets_and_only_tcp_ones() {
    let world = World::new("sockets", Mode::None);
    let tries = [
        // The filter lets it through to the broker, which has been told of nothing that is granted.
        ("socket", Fails(Errno::EACCES)),
        ("socket-unix", Denied("socket", libc::SYS_socket)),
        ("socket-packet", Denied("socket", libc::SYS_socket)),
        ("socket-udp", Denied("socket", libc::SYS_socket)),
        ("mount", Denied("mount", libc::SYS_mount)),
    ];
    for (name, outcome) in tries {
        check(name, outcome, &attempt(&world, name, ExecutorKind::Networked, |_| {}).await);
    }
}

#[tokio::test]
async fn no_executor_sees_where_its_pages_lie() {
    let world = World::new("frames", Mode::None);
    type Change = fn(&mut Options);
    let changes: [(&str, Change); 3] = [
        ("whole", |_| {}),
        ("without namespaces", |o| o.namespaces = false),
        ("as the agent's user", |o| {
            o.namespaces = false;
            o.users = Users::Shared("for a test".to_owned());
        }),
    ];
    for (what, change) in changes {
        let running = world.launcher(change).start(world.spec()).await.unwrap();
        let reset = running.isolation["memory_reset"].clone();
        running.stop(PATIENCE).await;
        let exit = attempt(&world, "pagemap-frames", ExecutorKind::Shared, change).await;
        if reset == "on: pagemap_scan" {
            check(what, Works, &exit);
        } else {
            // Without the ioctl none is held, and looking for one is as forbidden as any other path.
            eprintln!("no pagemap is held here ({reset})");
            let denied = exit.cause == format!("ended by its system call filter: open ({})", libc::SYS_open);
            assert!(denied || exit.code == Some(Errno::ENOENT as i32), "{what}: {exit:?}");
        }
    }
}

#[tokio::test]
async fn without_namespaces_the_filter_still_stands() {
    let world = World::new("bare", Mode::None);
    let exit = attempt(&world, "mount", ExecutorKind::Shared, |o| o.namespaces = false).await;
    check("mount", Denied("mount", libc::SYS_mount), &exit);
}

#[tokio::test]
async fn the_kernel_shows_every_layer_and_every_executor_has_a_user_of_its_own() {
    let world = World::new("layers", Mode::Auto);
    let launcher = world.launcher(|o| o.required = true);
    let one = launcher.start(world.spec()).await.unwrap();
    let two = launcher.start(ExecutorSpec { id: ExecutorId::new("e2").unwrap(), ..world.spec() }).await.unwrap();
    eprintln!("{:#?}\n{:?}", one.isolation, one.warnings);
    if nix::unistd::geteuid().is_root() {
        for layer in LAYERS {
            assert!(one.isolation[layer].starts_with("on"), "{layer}: {}", one.isolation[layer]);
        }
        let (a, b) = (one.uid.unwrap(), two.uid.unwrap());
        assert_ne!(a, b);
        for (running, uid) in [(&one, a), (&two, b)] {
            for pid in [running.process.pid(), running.worker] {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                assert!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{status}");
                assert_eq!(std::fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0);
            }
        }
        // Held by the executor, not by the agent: free as soon as nothing of it lives.
        let name = format!("@smalti/uid/{a}");
        let held = || std::fs::read_to_string("/proc/net/unix").unwrap().lines().any(|l| l.ends_with(&name));
        assert!(held());
        assert_eq!(one.stop(PATIENCE).await.code, Some(0));
        let deadline = Instant::now() + PATIENCE;
        while held() {
            assert!(Instant::now() < deadline, "{name} is still held");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    } else {
        eprintln!("NOT TESTED: users of their own need root");
        one.stop(PATIENCE).await;
    }
    two.stop(PATIENCE).await;
    world.all_gone().await;
}

#[tokio::test]
async fn a_layer_that_the_host_does_not_offer_is_missed_loudly_and_refuses_nothing() {
    let world = World::new("required", Mode::None);
    let launcher = world.launcher(|o| {
        o.required = true;
        o.users = Users::Shared("for a test".to_owned());
    });
    let running = launcher.start(world.spec()).await.unwrap();
    assert_eq!(running.isolation["own_uid"], "off: for a test");
    assert!(running.warnings.iter().any(|w| w.contains("NOT ENFORCED by the kernel: own_uid (off: for a test)")), "{:?}", running.warnings);
    assert_eq!(running.isolation["capabilities"], "on", "root in its own namespace has none either");
    running.stop(PATIENCE).await;
}

#[tokio::test]
async fn an_executor_without_the_walls_that_are_required_is_refused_and_gone() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOT TESTED: an ordinary user's host offers no namespaces for sure");
        return;
    }
    let world = World::new("refused", Mode::Auto);
    // One that leaves its namespaces out although it is told to make them.
    let script = world.dir.path().join("careless");
    std::fs::write(&script, format!("#!/bin/sh\nshift\nexec {} forge --no-namespaces \"$@\"\n", executor().display())).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let careless = |required| {
        world.launcher(|o| {
            o.executor_path.clone_from(&script);
            o.required = required;
        })
    };
    let error = careless(true).start(world.spec()).await.unwrap_err();
    assert!(matches!(error, Error::NotIsolated { .. }), "{error}");
    for layer in ["net_namespace (off: it is the agent's own)", "empty_root (off: it sees"] {
        assert!(error.to_string().contains(layer), "{error}");
    }
    let spec = ExecutorSpec { id: ExecutorId::new("tolerated").unwrap(), ..world.spec() };
    let running = careless(false).start(spec).await.unwrap();
    assert!(running.warnings.iter().any(|w| w.starts_with("NOT ENFORCED by the kernel: net_namespace")), "{:?}", running.warnings);
    running.stop(PATIENCE).await;
    world.all_gone().await;
}

#[tokio::test]
async fn a_stopped_executor_is_killed_at_once() {
    for (mode, namespaces) in [(Mode::Auto, true), (Mode::None, true), (Mode::None, false)] {
        let world = World::new("stopped", mode);
        let running = world.launcher(|o| o.namespaces = namespaces).start(world.spec()).await.unwrap();
        let both = [running.worker, running.process.pid()];
        for pid in both {
            kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        }
        running.process.kill();
        let exit = running.exit.await;
        assert_eq!(exit.code, None, "{exit:?}");
        let deadline = Instant::now() + PATIENCE;
        while both.into_iter().any(is_alive) {
            assert!(Instant::now() < deadline, "{mode:?} {namespaces}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.all_gone().await;
    }
}

#[tokio::test]
async fn the_launcher_of_a_networked_executor_stays_outside_until_its_end() {
    let world = World::new("outside", Mode::Auto);
    let spec = ExecutorSpec { kind: ExecutorKind::Networked, slots: 1, ..world.spec() };
    let running = world.launcher(|_| {}).start(spec).await.unwrap();
    assert!(running.broker.is_some());
    if world.cgroups.version().is_some() {
        let others = running.group.processes().unwrap();
        let launcher: Vec<_> = others.into_iter().filter(|p| ![running.worker, running.process.pid()].contains(p)).collect();
        assert_eq!(launcher.len(), 1);
        let net = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_eq!(net(&launcher[0].to_string()), net("self"));
        assert_ne!(net(&running.worker.to_string()), net("self"));
    }
    assert_eq!(running.stop(PATIENCE).await.code, Some(0));
    world.all_gone().await;
}

/// The same executable as another user, for the test below.
#[test]
fn as_an_ordinary_user_as_many_layers_as_user_namespaces_allow() {
    const INSIDE: &str = "SMALTI_TEST_AS_NOBODY";
    const NOBODY: u32 = 65_534;
    if std::env::var_os(INSIDE).is_none() {
        use std::os::unix::process::CommandExt;
        if !nix::unistd::geteuid().is_root() {
            eprintln!("NOT TESTED: becoming another user needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        // Where everybody may run it from, whatever directory this was built in.
        let copies = [std::env::current_exe().unwrap(), executor()].map(|from| {
            let to = dir.path().join(from.file_name().unwrap());
            std::fs::copy(from, &to).unwrap();
            to
        });
        let mut command = std::process::Command::new(&copies[0]);
        command.args(["--exact", "launcher::tests::walls::as_an_ordinary_user_as_many_layers_as_user_namespaces_allow", "--nocapture"]);
        command.env(INSIDE, &copies[1]).env("TMPDIR", dir.path()).uid(NOBODY).gid(NOBODY);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        eprintln!("{text}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new("nobody", Mode::None);
        let binary = PathBuf::from(std::env::var_os(INSIDE).unwrap());
        let launcher = world.launcher(|o| o.executor_path.clone_from(&binary));
        let running = launcher.start(world.spec()).await.unwrap();
        eprintln!("{:#?}", running.isolation);
        assert!(running.isolation["own_uid"].starts_with("off: the agent is not root"));
        if running.isolation["user_namespace"] == "on" {
            for layer in LAYERS.into_iter().filter(|l| *l != "own_uid") {
                assert!(running.isolation[layer].starts_with("on"), "{layer}: {}", running.isolation[layer]);
            }
        } else {
            eprintln!("NOT TESTED: this system gives ordinary users no user namespaces");
            assert!(running.isolation["seccomp"].starts_with("on"));
        }
        assert_eq!(running.stop(PATIENCE).await.code, Some(0));
        for (name, outcome) in [("open-passwd", Fails(Errno::ENOENT)), ("mount", Denied("mount", libc::SYS_mount))] {
            check(name, outcome, &attempt(&world, name, ExecutorKind::Shared, |o| o.executor_path.clone_from(&binary)).await);
        }
    });
}
