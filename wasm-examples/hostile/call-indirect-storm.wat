;; Calls through a table in a tight loop, and as a tail call, without end.
(module
  (memory (export "memory") 1)
  (type $f (func (param i32) (result i32)))
  (table 2 funcref)
  (elem (i32.const 0) $a $b)
  (func $a (type $f) (i32.add (local.get 0) (i32.const 1)))
  (func $b (type $f) (return_call_indirect (type $f) (local.get 0) (i32.const 0)))
  (func (export "_start") (local $n i32)
    (loop (local.set $n (call_indirect (type $f) (local.get $n) (i32.and (local.get $n) (i32.const 1)))) (br 0))))
