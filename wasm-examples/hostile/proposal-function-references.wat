;; A typed reference to a function: the proposal is off.
(module (type $f (func)) (elem declare func $g) (func $g) (func (export "_start") (call_ref $f (ref.func $g))))
