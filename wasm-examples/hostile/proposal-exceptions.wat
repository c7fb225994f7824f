;; Throws an exception: the proposal is off.
(module (tag $t) (func (export "_start") (throw $t)))
