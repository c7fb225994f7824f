;; Pages of one byte: the proposal is off.
(module (memory (export "memory") 1 (pagesize 1)) (func (export "_start")))
