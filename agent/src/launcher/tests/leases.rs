//! Exclusive tasks behind the walls, whose filter must let their timer through, and in a process that stands still for a while.

use super::guests::{hear, load_text, nowhere, outcome, start};
use super::*;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use smalti_executor_protocol::v1::{self, from_executor::Message as From};

const LOOP: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;
/// Prints a byte at a time without end.
const PRINT: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 100))
    (i32.store (i32.const 4) (i32.const 1))
    (loop (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20))) (br 0))))"#;

fn now_us() -> u64 {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap());
    u64::try_from(now.as_micros()).unwrap()
}

fn exclusive(run: u64, module: u32, until_us: u64) -> v1::StartTask {
    let guest = v1::Guest { module, args: vec!["guest".into()], memory_bytes: 1 << 20, output_bytes: 1 << 40, ..Default::default() };
    v1::StartTask { run, guest: Some(guest), lease_until_us: Some(until_us), ..Default::default() }
}

#[tokio::test]
async fn a_lease_ends_behind_the_walls() {
    let world = World::new("lease", Mode::Auto);
    for kind in [ExecutorKind::Shared, ExecutorKind::Pooled, ExecutorKind::Networked] {
        let spec = ExecutorSpec { id: ExecutorId::new(kind.as_str()).unwrap(), kind, slots: 1, ..world.spec() };
        let mut running = world.launcher(|_| {}).start(spec).await.unwrap();
        load_text(&mut running, 1, false, LOOP).await;
        let until = now_us() + 100_000;
        start(&mut running, exclusive(1, 1, until), nowhere()).await;
        let outcome = outcome(&mut running, 1).await;
        assert!(now_us() >= until);
        assert_eq!(outcome.failure.map(|f| f.reason).as_deref(), Some("LEASE_EXPIRED"));
        assert_eq!(running.stop(PATIENCE).await.code, Some(0));
    }
    world.all_gone().await;
}

/// Waits for a process to stand still, with all of its threads.
async fn until_still(pid: i32) {
    let still = |entry: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    let deadline = Instant::now() + PATIENCE;
    while !std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().all(still) {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn what_stood_still_beyond_its_lease_does_nothing_more() {
    let world = World::new("still", Mode::Auto);
    let spec = ExecutorSpec { slots: 1, ..world.spec() };
    let mut running = world.launcher(|_| {}).start(spec).await.unwrap();
    load_text(&mut running, 1, false, PRINT).await;
    for run in 1..=10 {
        let file = tempfile::NamedTempFile::new().unwrap();
        let length = || file.as_file().metadata().unwrap().len();
        let until = now_us() + 400_000;
        start(&mut running, exclusive(run, 1, until), file.reopen().unwrap()).await;
        assert!(matches!(hear(&mut running).await, From::Started(_)));
        let pid = Pid::from_raw(running.worker);
        kill(pid, Signal::SIGSTOP).unwrap();
        until_still(running.worker).await;
        let before = length();
        assert!(now_us() < until, "this machine is too slow for the test");
        while now_us() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        kill(pid, Signal::SIGCONT).unwrap();
        let outcome = outcome(&mut running, run).await;
        assert_eq!(outcome.failure.map(|f| f.reason).as_deref(), Some("LEASE_EXPIRED"));
        // It may have stood still between the look at the clock and the call.
        assert!(length() <= before + 1, "{} bytes more", length() - before);
    }
    assert_eq!(running.stop(PATIENCE).await.code, Some(0));
    world.all_gone().await;
}
