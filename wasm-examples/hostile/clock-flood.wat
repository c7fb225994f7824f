;; Asks two clocks for time and resolution, and yields, without end.
(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_res_get" (func $res (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $n i32)
    (loop
      (drop (call $time (local.get $n) (i64.const 0) (i32.const 0)))
      (drop (call $res (local.get $n) (i32.const 8)))
      (drop (call $yield))
      (local.set $n (i32.and (i32.add (local.get $n) (i32.const 1)) (i32.const 1)))
      (br 0))))
