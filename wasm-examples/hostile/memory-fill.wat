;; Fills and copies all of its memory again and again: long instructions that look at the clock only at their start.
(module
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (memory.grow (i32.const 1000)))
    (loop
      (memory.fill (i32.const 0) (i32.const 7) (i32.const 65600000))
      (memory.copy (i32.const 0) (i32.const 1) (i32.const 65500000))
      (br 0))))
