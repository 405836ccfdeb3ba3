# SPDX-License-Identifier: Apache-2.0
import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I, relax as R

from tvm_dynprune.passes.lift_weights import SMALLEST_BYTES, lift_weights

LENGTH = SMALLEST_BYTES // 4
A = R.Tensor((LENGTH,), "float32")
SMALL = 2.0


def network(u: np.ndarray, v: np.ndarray) -> tvm.IRModule:
    """main(x) = branch(x + v) + u + 2, branch(x) = x * u."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(u.shape, "float32"))
    with builder.function("branch", [x], private=True):
        result = builder.emit(relax.op.multiply(x, relax.const(u)), "a")
        builder.emit_func_output(result)
    branch = builder.get().get_global_var("branch")
    x = relax.Var("x", relax.TensorType(u.shape, "float32"))
    with builder.function("main", [x]):
        a = builder.emit(relax.op.add(x, relax.const(v)), "a")
        b = builder.emit(relax.Call(branch, [a]), "b")
        c = builder.emit(relax.op.add(b, relax.const(u)), "c")
        builder.emit_func_output(builder.emit(relax.op.add(c, relax.const(SMALL)), "d"))
    return builder.get()


def test_large_constants_become_elements() -> None:
    @I.ir_module
    class Expected:
        @R.function(private=True)
        def branch(x: A, weights: R.Tuple(A, A)) -> A:
            w0 = weights[0]
            a = R.multiply(x, w0)
            return a

        @R.function
        def main(x: A, weights: R.Tuple(A, A)) -> A:
            w0 = weights[0]
            w1 = weights[1]
            a = R.add(x, w1)
            b = Expected.branch(a, weights)
            c = R.add(b, w0)
            d = R.add(c, R.const(SMALL, "float32"))
            return d

    u, v = np.arange(LENGTH, dtype="float32"), np.ones(LENGTH, "float32")
    lifted, arrays = lift_weights(network(u, v))
    tvm.ir.assert_structural_equal(lifted, Expected)
    assert [array.tolist() for array in arrays] == [u.tolist(), v.tolist()]


def test_constants_below_the_limit_stay() -> None:
    lifted, arrays = lift_weights(network(np.zeros(LENGTH - 1, "f"), np.ones(LENGTH - 1, "f")))
    assert arrays == []
    for func in (lifted["main"], lifted["branch"]):
        assert [param.name for param in func.params] == ["x", "weights"]
