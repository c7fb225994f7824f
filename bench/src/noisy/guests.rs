//! The guests of both tenants, as text: each does one thing.

/// Computes over a MiB of memory, the same every time: about a millisecond for each round.
pub(super) fn compute(rounds: u32) -> String {
    let steps = 250_000 * rounds;
    format!(
        r#"(module (memory (export "memory") 17)
  (func (export "_start") (local $i i32) (local $x i32)
    (loop $l
      (i32.store (i32.and (i32.mul (local.get $i) (i32.const 68)) (i32.const 0xffffc))
        (local.tee $x (i32.add (i32.mul (local.get $x) (i32.const 1664525))
          (i32.load (i32.and (i32.mul (local.get $i) (i32.const 132)) (i32.const 0xffffc))))))
      (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const {steps}))))))"#
    )
}

/// Never ends.
pub(super) const SPIN: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))"#;

/// Ends at once.
pub(super) const NOTHING: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;

/// Writes 64 KiB after 64 KiB to stdout until it is stopped.
pub(super) const PRINT: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 65536))
    (loop $l (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (br $l))))"#;

/// Takes 200 MiB page by page and ends: the pages are made and given back again and again.
pub(super) const ALLOCATE: &str = r#"(module (memory (export "memory") 1)
  (func (export "_start") (local $page i32)
    (drop (memory.grow (i32.const 3199)))
    (loop $l
      (i32.store8 (i32.mul (local.get $page) (i32.const 4096)) (i32.const 1))
      (br_if $l (i32.lt_u (local.tee $page (i32.add (local.get $page) (i32.const 1))) (i32.const 51200))))))"#;

/// Reports progress as fast as it can, each time something else.
pub(super) const PROGRESS: &str = r#"(module
  (import "smalti" "progress" (func $progress (param i32 i32 i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $i i32)
    (loop $l
      (i32.store (i32.const 0) (i32.or (i32.and (local.get $i) (i32.const 0x0f0f0f0f)) (i32.const 0x30303030)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (call $progress (i32.and (local.get $i) (i32.const 511)) (i32.const 0) (i32.const 200))
      (br $l))))"#;

/// Makes files on its disk, closes and removes them, and asks the kernel for random bytes. Traps when that does not work.
pub(super) const OPEN: &str = r#"(module
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "a")
  (func (export "_start")
    (loop $l
      (if (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 1) (i64.const 64) (i64.const 64) (i32.const 0) (i32.const 16))
        (then unreachable))
      (if (call $close (i32.load (i32.const 16))) (then unreachable))
      (if (call $unlink (i32.const 3) (i32.const 0) (i32.const 1)) (then unreachable))
      (drop (call $random (i32.const 1024) (i32.const 4096)))
      (br $l))))"#;

/// Fills its disk, 128 KiB after 128 KiB, and begins again at the front when it is full. Traps when it has no disk.
pub(super) const WRITE: &str = r#"(module
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (data (i32.const 0) "a")
  (func (export "_start")
    (if (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 1) (i64.const 68) (i64.const 68) (i32.const 0) (i32.const 16))
      (then unreachable))
    (i32.store (i32.const 32) (i32.const 1024)) (i32.store (i32.const 36) (i32.const 131072))
    (loop $l
      (if (call $write (i32.load (i32.const 16)) (i32.const 32) (i32.const 1) (i32.const 40))
        (then (drop (call $seek (i32.load (i32.const 16)) (i64.const 0) (i32.const 0) (i32.const 48)))))
      (br $l))))"#;

/// A program that no other number gives, with some work for a compiler.
pub(super) fn distinct(n: u64) -> String {
    use std::fmt::Write;
    let mut text = format!("(module (memory (export \"memory\") 1) (func (export \"_start\")) (global i64 i64.const {n})");
    for f in 0..60 {
        let _ = write!(text, "(func (param i64) (result i64) (local i64 i64) local.get 0 i64.const {f}");
        for k in 0..40 {
            let _ = write!(text, " i64.add local.tee {} local.get {} i64.xor", k % 3, (k + 1) % 3);
            text.push_str(" local.get 0");
        }
        text.push_str(" i64.add)");
    }
    text.push(')');
    text
}
