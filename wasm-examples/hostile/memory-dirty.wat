;; Touches every page of 32 MiB and traps: the next guest must find none of it, and the executor none the larger.
(module
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (memory.grow (i32.const 500)))
    (memory.fill (i32.const 0) (i32.const 255) (i32.const 32800000))
    unreachable))
