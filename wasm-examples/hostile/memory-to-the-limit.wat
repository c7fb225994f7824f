;; Grows its memory a page at a time until it is refused, and touches the last byte. Exits with 0 if it got exactly 32 MiB.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (i32.store8 (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 1)) (i32.const 1))
    (if (i32.ne (memory.size) (i32.const 512)) (then (call $exit (i32.const 1))))))
