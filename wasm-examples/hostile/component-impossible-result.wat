;; A component whose entry point returns what no result can be.
(component
  (core module $main (func (export "run") (result i32) (i32.const 77)))
  (core instance $i (instantiate $main))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $inst (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $inst)))
