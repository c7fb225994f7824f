;; Grows its memory to 32 MiB, then by one page more, and gives up when that is refused.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (if (i32.eq (memory.grow (i32.const 511)) (i32.const -1)) (then (call $exit (i32.const 1))))
    (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))))
