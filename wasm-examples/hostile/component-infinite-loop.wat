;; A component that computes without end.
(component
  (core module $main (func (export "run") (result i32) (loop (br 0)) unreachable))
  (core instance $i (instantiate $main))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $inst (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $inst)))
