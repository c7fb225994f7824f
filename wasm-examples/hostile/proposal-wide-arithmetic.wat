;; A 128-bit addition: the proposal is off.
(module (func (export "_start") (i64.add128 (i64.const 1) (i64.const 1) (i64.const 1) (i64.const 1)) drop drop))
