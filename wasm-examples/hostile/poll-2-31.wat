;; Polls two thousand million subscriptions, and four thousand million, and none. Exits with 0 if each is refused.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (if (i32.eqz (call $poll (i32.const 0) (i32.const 104) (i32.const 0x80000000) (i32.const 200))) (then (call $exit (i32.const 1))))
    (if (i32.eqz (call $poll (i32.const 0) (i32.const 104) (i32.const -1) (i32.const 200))) (then (call $exit (i32.const 2))))
    (if (i32.eqz (call $poll (i32.const 0) (i32.const 104) (i32.const 0) (i32.const 200))) (then (call $exit (i32.const 3))))))
