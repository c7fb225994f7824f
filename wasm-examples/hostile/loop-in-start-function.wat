;; Never gets as far as its entry point.
(module
  (memory (export "memory") 1)
  (func $first (loop (br 0)))
  (start $first)
  (func (export "_start")))
