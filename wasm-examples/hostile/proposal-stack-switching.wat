;; A continuation: the proposal is off.
(module (type $f (func)) (type $c (cont $f)) (elem declare func $g) (func $g) (func (export "_start") (resume $c (cont.new $c (ref.func $g)))))
