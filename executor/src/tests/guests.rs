//! Guests as text: each does one thing.

pub(super) const EMPTY: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;

/// Prints its global counter after adding one to it.
pub(super) const COUNTER: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (global $count (mut i32) (i32.const 0))
  (func (export "_start")
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (i32.store8 (i32.const 100) (i32.add (i32.const 48) (global.get $count)))
    (i32.store (i32.const 0) (i32.const 100))
    (i32.store (i32.const 4) (i32.const 1))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))))"#;

pub(super) const TRAP: &str = r#"(module (memory (export "memory") 1) (func $inner unreachable) (func (export "_start") (call $inner)))"#;

pub(super) const LOOP: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;

/// Sleeps for an hour.
pub(super) const SLEEP: &str = r#"(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 3600000000000))
    (drop (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))))"#;

/// Grows its memory until it is refused, then gives up.
pub(super) const GROW: &str = r#"(module (memory (export "memory") 1)
  (func (export "_start")
    (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    unreachable))"#;

/// Prints without end.
pub(super) const PRINT: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 100))
    (i32.store (i32.const 4) (i32.const 1000))
    (loop (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20))) (br 0))))"#;

/// Copies stdin to stdout.
pub(super) const CAT: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 100))
    (loop $next
      (i32.store (i32.const 4) (i32.const 5000))
      (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 20)) (then unreachable))
      (if (i32.load (i32.const 20)) (then
        (i32.store (i32.const 4) (i32.load (i32.const 20)))
        (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)) (then unreachable))
        (br $next))))))"#;

/// Prints its environment, each variable with a zero behind it.
pub(super) const ENVIRONMENT: &str = r#"(module
  (import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $sizes (i32.const 0) (i32.const 4)))
    (drop (call $get (i32.const 100) (i32.const 1000)))
    (i32.store (i32.const 0) (i32.const 1000))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))))"#;

/// Prints the file `f` of its first directory, and exits with the error of creating `g` there.
pub(super) const FILES: &str = r#"(module
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 50) "fg")
  (func (export "_start")
    (if (call $open (i32.const 3) (i32.const 0) (i32.const 50) (i32.const 1) (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 40))
      (then unreachable))
    (i32.store (i32.const 0) (i32.const 100))
    (i32.store (i32.const 4) (i32.const 1000))
    (if (call $read (i32.load (i32.const 40)) (i32.const 0) (i32.const 1) (i32.const 20)) (then unreachable))
    (i32.store (i32.const 4) (i32.load (i32.const 20)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))
    (call $exit (call $open (i32.const 3) (i32.const 0) (i32.const 51) (i32.const 1) (i32.const 1) (i64.const 64) (i64.const 64) (i32.const 0) (i32.const 40)))))"#;

/// Reports progress, returns "abc", then waits until it should stop and exits with 0.
pub(super) const POLITE: &str = r#"(module
  (import "smalti" "should_stop" (func $stop (result i32)))
  (import "smalti" "progress" (func $progress (param i32 i32 i32)))
  (import "smalti" "result" (func $result (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "abc")
  (func (export "_start")
    (call $progress (i32.const 5000) (i32.const 0) (i32.const 3))
    (if (call $result (i32.const 0) (i32.const 3)) (then unreachable))
    (if (i32.ne (call $result (i32.const 0) (i32.const 20000)) (i32.const 1)) (then unreachable))
    (loop (br_if 0 (i32.eqz (call $stop))))))"#;

/// Counts down from a million: its fuel is always the same.
pub(super) const COUNT_DOWN: &str = r#"(module (memory (export "memory") 1)
  (func (export "_start") (local $n i32)
    (local.set $n (i32.const 1000000))
    (loop (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))"#;

/// Traps unless all of its four mebibytes, its table and its globals are as new; then dirties them.
pub(super) const DIRTY: &str = r#"(module
  (memory (export "memory") 64)
  (table $t 10 funcref)
  (elem declare func $f)
  (func $f)
  (func (export "_start") (local $at i32)
    (if (i32.eqz (ref.is_null (table.get $t (i32.const 3)))) (then unreachable))
    (table.set $t (i32.const 3) (ref.func $f))
    (loop
      (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then unreachable))
      (i64.store (local.get $at) (i64.const -1))
      (local.set $at (i32.add (local.get $at) (i32.const 512)))
      (br_if 0 (i32.lt_u (local.get $at) (i32.const 4194304))))))"#;

/// Calls itself without end.
pub(super) const RECURSE: &str = r#"(module (memory (export "memory") 1) (func $deeper (export "_start") (call $deeper) (call $deeper)))"#;

/// Returns a value that lies beyond its memory.
pub(super) const LIAR: &str = r#"(module (import "smalti" "result" (func $result (param i32 i32) (result i32))) (memory (export "memory") 1)
  (func (export "_start") (drop (call $result (i32.const -10) (i32.const 100)))))"#;

/// Exits with this code.
pub(super) fn exit(code: i32) -> String {
    format!(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
           (func (export "_start") (call $exit (i32.const {code}))))"#
    )
}

/// A component that asks whether it should stop, returns one byte, and ends well or badly.
pub(super) fn component(result: i32) -> String {
    format!(
        r#"(component
  (import "smalti:guest/task@0.1.0" (instance $task
    (export "should-stop" (func (result bool)))
    (export "return-value" (func (param "value" (list u8)) (result (result (error string)))))))
  (core module $memory
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
  (core instance $m (instantiate $memory))
  (core func $stop (canon lower (func $task "should-stop")))
  (core func $value (canon lower (func $task "return-value") (memory $m "memory") (realloc (func $m "realloc"))))
  (core module $main
    (import "" "memory" (memory 1))
    (import "" "stop" (func $stop (result i32)))
    (import "" "value" (func $value (param i32 i32 i32)))
    (func (export "run") (result i32)
      (if (call $stop) (then unreachable))
      (i32.store8 (i32.const 0) (i32.const 65))
      (call $value (i32.const 0) (i32.const 1) (i32.const 16))
      (i32.const {result})))
  (core instance $i (instantiate $main (with "" (instance
    (export "memory" (memory $m "memory")) (export "stop" (func $stop)) (export "value" (func $value))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $inst (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $inst)))"#
    )
}

/// As `DIRTY`, with bytes of its own that must be there each time, and less memory.
pub(super) const DIRTY_WITH_DATA: &str = r#"(module
  (memory (export "memory") 20)
  (data (i32.const 70000) "own bytes")
  (func (export "_start") (local $at i32)
    (if (i64.ne (i64.load (i32.const 70000)) (i64.const 0x65747962206e776f)) (then unreachable))
    (memory.fill (i32.const 70000) (i32.const 0) (i32.const 9))
    (loop
      (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then unreachable))
      (i64.store (local.get $at) (i64.const -1))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if 0 (i32.lt_u (local.get $at) (i32.const 1310720))))))"#;

/// Grows a table until it is refused, then gives up.
pub(super) const GROW_TABLE: &str = r#"(module (memory (export "memory") 1) (table $t 0 funcref)
  (func (export "_start")
    (loop (br_if 0 (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1))))
    unreachable))"#;

/// Grows its memory until it is refused, then exits with 4.
pub(super) const GROW_AND_EXIT: &str = r#"(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (call $exit (i32.const 4))))"#;

/// Wants 2 GiB before it begins.
pub(super) const TWO_GIB: &str = r#"(module (memory (export "memory") 32768) (func (export "_start")))"#;

/// Wants a larger table than there is before it begins.
pub(super) const LARGE_TABLE: &str = r#"(module (memory (export "memory") 1) (table 120000 funcref) (func (export "_start")))"#;

/// Waits for two thousand clocks at once.
pub(super) const MANY_CLOCKS: &str = r#"(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (func (export "_start") (local $at i32)
    (loop $next
      (i32.store offset=16 (local.get $at) (i32.const 1))
      (i64.store offset=24 (local.get $at) (i64.const 0x7000000000000000))
      (local.set $at (i32.add (local.get $at) (i32.const 48)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 96000))))
    (drop (call $poll (i32.const 0) (i32.const 100000) (i32.const 2000) (i32.const 200000)))))"#;

/// Makes resources of its own without end.
pub(super) const RESOURCE_LEAK: &str = r#"(component
  (type $r (resource (rep i32)))
  (core func $new (canon resource.new $r))
  (core module $main
    (import "" "new" (func $new (param i32) (result i32)))
    (func (export "run") (result i32) (loop (drop (call $new (i32.const 1))) (br 0)) unreachable))
  (core instance $i (instantiate $main (with "" (instance (export "new" (func $new))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $inst (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $inst)))"#;

/// A component of so many core instances.
pub(super) fn instances(count: usize) -> String {
    let instances: String = (0..count).map(|i| format!("(core instance $i{i} (instantiate $m))")).collect();
    format!(
        r#"(component (core module $m (func (export "run") (result i32) (i32.const 0))) {instances}
           (func $run (result (result)) (canon lift (core func $i0 "run"))) (instance $inst (export "run" (func $run)))
           (export "wasi:cli/run@0.2.0" (instance $inst)))"#
    )
}
