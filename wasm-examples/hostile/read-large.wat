;; Reads a small file again and again into a buffer of 12 MiB: the host must not allocate as much.
(module
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_pread" (func $pread (param i32 i32 i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
  (memory (export "memory") 256)
  (data (i32.const 16) "asset.txt")
  (func (export "_start")
    (if (call $open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 9) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 32)) (then unreachable))
    (i32.store (i32.const 0) (i32.const 65536))
    (i32.store (i32.const 4) (i32.const 12582912))
    (loop
      (if (call $pread (i32.load (i32.const 32)) (i32.const 0) (i32.const 1) (i64.const 0) (i32.const 40)) (then unreachable))
      (if (call $read (i32.load (i32.const 32)) (i32.const 0) (i32.const 1) (i32.const 40)) (then unreachable))
      (if (i32.ne (i32.load (i32.const 40)) (i32.const 9)) (then unreachable))
      (if (call $seek (i32.load (i32.const 32)) (i64.const 0) (i32.const 0) (i32.const 48)) (then unreachable))
      (br 0))))
