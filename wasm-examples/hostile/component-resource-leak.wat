;; A component that makes resources of its own without end and drops none.
(component
  (type $r (resource (rep i32)))
  (core func $new (canon resource.new $r))
  (core module $main
    (import "" "new" (func $new (param i32) (result i32)))
    (func (export "run") (result i32) (loop (drop (call $new (i32.const 1))) (br 0)) unreachable))
  (core instance $i (instantiate $main (with "" (instance (export "new" (func $new))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $inst (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $inst)))
