;; A component that waits for an hour on two hundred pollables at once.
(component
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $p (sub resource)))
    (export "poll" (func (param "in" (list (borrow $p))) (result (list u32))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $p))
    (export "pollable" (type $q (eq $p)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $q))))))
  (core module $memory
    (memory (export "memory") 2)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536)))
  (core instance $m (instantiate $memory))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core func $wait (canon lower (func $poll "poll") (memory $m "memory") (realloc (func $m "realloc"))))
  (core module $main
    (import "" "memory" (memory 2))
    (import "" "subscribe" (func $subscribe (param i64) (result i32)))
    (import "" "wait" (func $wait (param i32 i32 i32)))
    (func (export "run") (result i32) (local $n i32)
      (loop $more
        (i32.store (i32.mul (local.get $n) (i32.const 4)) (call $subscribe (i64.const 3600000000000)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $more (i32.lt_u (local.get $n) (i32.const 200))))
      (call $wait (i32.const 0) (i32.const 200) (i32.const 8000))
      (i32.const 0)))
  (core instance $i (instantiate $main (with "" (instance
    (export "memory" (memory $m "memory")) (export "subscribe" (func $subscribe)) (export "wait" (func $wait))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $inst (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $inst)))
