//! Guests inside the walls: real code, loaded and run by an executor that has no `/proc` any more.

use super::*;
use smalti_executor_protocol::v1::{self, from_executor::Message as From, to_executor::Message as To};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Leaves a word in every page of its memory. Exits with 1 if it finds one of somebody else's there, or in a global or table.
const LEAVES_TRACES: &str = r#"(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 64)
  (global $traces (mut i32) (i32.const 0))
  (func (export "_start") (local $at i32)
    (if (global.get $traces) (then (call $exit (i32.const 2))))
    (global.set $traces (i32.const 1))
    (loop $next
      (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then (call $exit (i32.const 1))))
      (i64.store (local.get $at) (i64.const 0x5ec12e7))
      (local.set $at (i32.add (local.get $at) (i32.const 4096)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 4194304))))))"#;
/// The guest's memory: above what the executor keeps resident between two guests.
const MEMORY_BYTES: u64 = 16 << 20;

/// Sends compiled code.
async fn load(running: &mut Running, module: u32, fuel: bool) {
    load_text(running, module, fuel, LEAVES_TRACES).await;
}

/// Sends a guest, compiled.
pub(super) async fn load_text(running: &mut Running, module: u32, fuel: bool, text: &str) {
    let config = smalti_engine::base_config(fuel);
    let engine = wasmtime::Engine::new(&config).unwrap();
    let code = engine.precompile_module(&wat::parse_str(text).unwrap()).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&code).unwrap();
    file.rewind().unwrap();
    let message = To::Load(v1::LoadModule { module, component: false, name: "traces".to_owned(), fuel });
    running.link.send(message, &[file.as_fd()]).await.unwrap();
    match hear(running).await {
        From::Loaded(v1::ModuleLoaded { failure: None, .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// The next message.
pub(super) async fn hear(running: &mut Running) -> From {
    let said = tokio::time::timeout(PATIENCE, running.link.recv()).await.expect("it says something");
    said.unwrap().expect("the connection stands").message
}

/// Starts a task in slot 0 whose stdout goes to `output`.
pub(super) async fn start(running: &mut Running, start: v1::StartTask, output: File) {
    let outputs: [OwnedFd; 2] = [output.into(), File::options().write(true).open("/dev/null").unwrap().into()];
    let fds: Vec<BorrowedFd<'_>> = outputs.iter().map(AsFd::as_fd).collect();
    running.link.send(To::Start(start), &fds).await.unwrap();
}

/// How the task ended.
pub(super) async fn outcome(running: &mut Running, run: u64) -> v1::Outcome {
    loop {
        match hear(running).await {
            From::Outcome(outcome) if outcome.run == run => return outcome,
            From::Started(_) | From::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A place for output that nobody reads.
pub(super) fn nowhere() -> File {
    File::options().write(true).open("/dev/null").unwrap()
}

/// Runs one task in slot 0 and gives its outcome.
async fn run(running: &mut Running, run: u64, module: u32, fuel: Option<u64>) -> v1::Outcome {
    let guest =
        v1::Guest { module, args: vec!["guest".into()], memory_bytes: MEMORY_BYTES, output_bytes: 1 << 20, fuel, ..Default::default() };
    start(running, v1::StartTask { run, guest: Some(guest), ..Default::default() }, nowhere()).await;
    outcome(running, run).await
}

#[tokio::test]
async fn a_used_slot_never_shows_the_last_guests_bytes_behind_the_walls() {
    let world = World::new("traces", Mode::Auto);
    for kind in [ExecutorKind::Shared, ExecutorKind::Pooled, ExecutorKind::Networked] {
        let id = ExecutorId::new(kind.as_str()).unwrap();
        // One slot: every guest gets the memory of the one before.
        let spec = ExecutorSpec { id, kind, slots: 1, ..world.spec() };
        let mut running = world.launcher(|_| {}).start(spec).await.unwrap();
        // What the engine chose is still in force: the worker has tried it behind the walls.
        assert_eq!(running.isolation["memory_reset"], format!("on: {}", running.hello.reset), "{:?}", running.isolation);
        eprintln!("{}: {}", kind.as_str(), running.isolation["memory_reset"]);
        load(&mut running, 1, false).await;
        load(&mut running, 2, true).await;
        for n in 0..6 {
            let (module, fuel) = if n % 2 == 0 { (1, None) } else { (2, Some(1_000_000_000)) };
            let outcome = run(&mut running, n, module, fuel).await;
            assert_eq!((outcome.exit_code, &outcome.failure), (Some(0), &None), "run {n} found traces of the one before");
        }
        assert_eq!(running.stop(PATIENCE).await.code, Some(0));
    }
    world.all_gone().await;
}
