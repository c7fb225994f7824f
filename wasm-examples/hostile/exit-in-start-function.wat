;; Ends before its entry point is called.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func $first (call $exit (i32.const 7)))
  (start $first)
  (func (export "_start") unreachable))
