;; A component that never gets as far as its entry point.
(component
  (core module $main (func $first (loop (br 0))) (start $first) (func (export "run") (result i32) (i32.const 0)))
  (core instance $i (instantiate $main))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $inst (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $inst)))
