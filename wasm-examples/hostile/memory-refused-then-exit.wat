;; Is refused memory and ends itself with an exit code of its own.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $more (br_if $more (i32.ne (memory.grow (i32.const 100)) (i32.const -1))))
    (call $exit (i32.const 3))))
