;; Returns a value that lies beyond its memory.
(module
  (import "smalti" "result" (func $result (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $result (i32.const -10) (i32.const 100)))))
