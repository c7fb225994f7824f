;; Reads and writes with buffers and lists that lie outside its memory or wrap. Exits with 0 if each is refused.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    ;; buffer beyond memory
    (i32.store (i32.const 0) (i32.const 65530))
    (i32.store (i32.const 4) (i32.const 100))
    (if (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20))) (then (call $exit (i32.const 1))))
    (if (i32.eqz (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 20))) (then (call $exit (i32.const 41))))
    ;; buffer wraps
    (i32.store (i32.const 0) (i32.const -16))
    (i32.store (i32.const 4) (i32.const 64))
    (if (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20))) (then (call $exit (i32.const 2))))
    (if (i32.eqz (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 20))) (then (call $exit (i32.const 42))))
    ;; length is all there is
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const -1))
    (if (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20))) (then (call $exit (i32.const 3))))
    (if (i32.eqz (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 20))) (then (call $exit (i32.const 43))))
    ;; address is the last byte
    (i32.store (i32.const 0) (i32.const -1))
    (i32.store (i32.const 4) (i32.const -1))
    (if (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20))) (then (call $exit (i32.const 4))))
    (if (i32.eqz (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 20))) (then (call $exit (i32.const 44))))
    ;; list beyond memory
    (if (i32.eqz (call $write (i32.const 1) (i32.const 65532) (i32.const 1) (i32.const 20))) (then (call $exit (i32.const 5))))
    ;; list wraps
    (if (i32.eqz (call $write (i32.const 1) (i32.const -8) (i32.const 3) (i32.const 20))) (then (call $exit (i32.const 6))))
    ;; two thousand million records
    (if (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const 0x7fffffff) (i32.const 20))) (then (call $exit (i32.const 7))))
    ;; four thousand million records
    (if (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const -1) (i32.const 20))) (then (call $exit (i32.const 8))))
    ;; list not aligned
    (if (i32.eqz (call $write (i32.const 1) (i32.const 3) (i32.const 1) (i32.const 20))) (then (call $exit (i32.const 9))))
    ;; the result does not fit: the write itself may have happened
    (i32.store (i32.const 0) (i32.const 100))
    (i32.store (i32.const 4) (i32.const 1))
    (if (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 65534))) (then (call $exit (i32.const 30))))))
