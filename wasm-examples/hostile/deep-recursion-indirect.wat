;; Two functions call each other through a table without end.
(module
  (memory (export "memory") 1)
  (type $f (func (param i32)))
  (table 2 funcref)
  (elem (i32.const 0) $a $b)
  (func $a (type $f) (call_indirect (type $f) (i32.const 0) (i32.const 1)) (call_indirect (type $f) (i32.const 0) (i32.const 1)))
  (func $b (type $f) (call_indirect (type $f) (i32.const 0) (i32.const 0)) (call_indirect (type $f) (i32.const 0) (i32.const 0)))
  (func (export "_start") (call $a (i32.const 0))))
