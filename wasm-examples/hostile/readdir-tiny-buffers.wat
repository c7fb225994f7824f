;; Lists its directory one byte at a time, from every cookie, without end. Needs one preopened directory.
(module
  (import "wasi_snapshot_preview1" "fd_readdir" (func $readdir (param i32 i32 i32 i64 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $cookie i64)
    (loop
      (drop (call $readdir (i32.const 3) (i32.const 100) (i32.const 1) (local.get $cookie) (i32.const 0)))
      (local.set $cookie (i64.add (local.get $cookie) (i64.const 0x100000001)))
      (br 0))))
