;; Never returns and never grows its stack: a loop without a loop.
(module
  (memory (export "memory") 1)
  (func $again (return_call $again))
  (func (export "_start") (call $again)))
