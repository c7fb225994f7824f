;; Grows four memories in turn: each is within the limit, their sum is not.
(module
  (memory (export "memory") 1) (memory $b 1) (memory $c 1) (memory $d 1)
  (func (export "_start")
    (loop $more
      (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then unreachable))
      (if (i32.eq (memory.grow $b (i32.const 16)) (i32.const -1)) (then unreachable))
      (if (i32.eq (memory.grow $c (i32.const 16)) (i32.const -1)) (then unreachable))
      (if (i32.eq (memory.grow $d (i32.const 16)) (i32.const -1)) (then unreachable))
      (br $more))))
