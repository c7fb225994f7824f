;; Prints one byte at a time to stderr, without end.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 100))
    (i32.store (i32.const 4) (i32.const 1))
    (loop (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 20))) (br 0))))
