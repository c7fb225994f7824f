;; Closes, renumbers and reuses its standard streams. Exits with 0 if each trick has its due answer.
(module
  (import "wasi_snapshot_preview1" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $n i32)
    ;; a number that is not open cannot be taken
    (if (i32.eqz (call $renumber (i32.const 1) (i32.const 0x7fffffff))) (then (call $exit (i32.const 1))))
    (if (i32.eqz (call $renumber (i32.const -1) (i32.const 1))) (then (call $exit (i32.const 2))))
    ;; stdout over stdin, twice
    (if (call $renumber (i32.const 1) (i32.const 0)) (then (call $exit (i32.const 3))))
    (if (i32.eqz (call $renumber (i32.const 1) (i32.const 0))) (then (call $exit (i32.const 4))))
    (if (i32.eqz (call $close (i32.const 1))) (then (call $exit (i32.const 5))))
    (i32.store (i32.const 0) (i32.const 100))
    (i32.store (i32.const 4) (i32.const 1))
    (if (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20))) (then (call $exit (i32.const 6))))
    (if (call $write (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 20)) (then (call $exit (i32.const 7))))
    ;; itself onto itself, for ever but finitely often
    (loop $again
      (if (call $renumber (i32.const 2) (i32.const 2)) (then (call $exit (i32.const 8))))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 100000))))
    (if (call $close (i32.const 0)) (then (call $exit (i32.const 9))))
    (if (call $close (i32.const 2)) (then (call $exit (i32.const 10))))
    (if (i32.eqz (call $close (i32.const 0))) (then (call $exit (i32.const 11))))))
