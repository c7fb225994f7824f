;; A 64-bit memory: the proposal is off.
(module (memory (export "memory") i64 1) (func (export "_start")))
