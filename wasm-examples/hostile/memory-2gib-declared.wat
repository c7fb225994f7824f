;; Wants 2 GiB before its first instruction.
(module
  (memory (export "memory") 32768)
  (func (export "_start")
))
