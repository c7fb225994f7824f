;; Waits for its input again and again and never reads it.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (loop
      (i32.store8 (i32.const 8) (i32.const 1))
      (i32.store (i32.const 16) (i32.const 0))
      (drop (call $poll (i32.const 0) (i32.const 104) (i32.const 1) (i32.const 200)))
      (br 0))))
