;; Ends without having read its input.
(module
  (memory (export "memory") 1)
  (func (export "_start")
))
