;; Opens and links files by names of a mebibyte and of all of its memory, without end: the host copies them.
(module
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 256)
  (func (export "_start")
    (memory.fill (i32.const 0) (i32.const 97) (i32.const 16777216))
    (loop
      (drop (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1048576) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 0)))
      (drop (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 16777216) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 0)))
      (drop (call $symlink (i32.const 0) (i32.const 1048576) (i32.const 3) (i32.const 0) (i32.const 1048570)))
      (br 0))))
