;; Reports progress without end, and texts that lie outside its memory at the end of it.
(module
  (import "smalti" "progress" (func $progress (param i32 i32 i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (loop (call $progress (i32.const -1) (i32.const 0) (i32.const 65536)) (br 0))))
