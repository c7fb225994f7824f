;; Prints the value of the environment variable SMALTI_ITEM and a newline.
(module
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 2)
  (data (i32.const 16) "SMALTI_ITEM=")
  (data (i32.const 32) "\n")
  (func $matches (param $p i32) (result i32) (local $i i32)
    (loop $next
      (if (i32.ne (i32.load8_u (i32.add (local.get $p) (local.get $i))) (i32.load8_u (i32.add (i32.const 16) (local.get $i))))
        (then (return (i32.const 0))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $i) (i32.const 12))))
    (i32.const 1))
  (func $length (param $p i32) (result i32) (local $n i32)
    (block $done
      (loop $next
        (br_if $done (i32.eqz (i32.load8_u (i32.add (local.get $p) (local.get $n)))))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br $next)))
    (local.get $n))
  (func (export "_start") (local $i i32) (local $p i32)
    (drop (call $sizes (i32.const 0) (i32.const 4)))
    (drop (call $get (i32.const 1024) (i32.const 16384)))
    (block $none
      (loop $next
        (br_if $none (i32.ge_u (local.get $i) (i32.load (i32.const 0))))
        (local.set $p (i32.load (i32.add (i32.const 1024) (i32.mul (local.get $i) (i32.const 4)))))
        (if (call $matches (local.get $p))
          (then
            (i32.store (i32.const 64) (i32.add (local.get $p) (i32.const 12)))
            (i32.store (i32.const 68) (call $length (i32.add (local.get $p) (i32.const 12))))
            (drop (call $write (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 8)))
            ;; One call each: a host may write the first buffer only.
            (i32.store (i32.const 64) (i32.const 32))
            (i32.store (i32.const 68) (i32.const 1))
            (drop (call $write (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 8)))
            (return)))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next)))
    (call $exit (i32.const 99))))
