;; Polls ten thousand clocks that ring in a thousand years.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 20)
  (func (export "_start") (local $at i32)
    (loop $next
      (i32.store offset=16 (local.get $at) (i32.const 1))
      (i64.store offset=24 (local.get $at) (i64.const 0x7000000000000000))
      (local.set $at (i32.add (local.get $at) (i32.const 48)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 480000))))
    (drop (call $poll (i32.const 0) (i32.const 500000) (i32.const 10000) (i32.const 900000)))
    unreachable))
