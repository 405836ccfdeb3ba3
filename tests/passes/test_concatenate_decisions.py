# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I, relax as R, tirx as T

from tests.passes.util import assert_pass, assert_unchanged, run
from tvm_dynprune.passes.concatenate_decisions import ConcatenateDecisions

X, ONE, TWO = R.Tensor((2, 3), "float32"), R.Tensor((2, 3), "bool"), R.Tensor((2, 2), "bool")
BOTH = R.Tensor((2, 5), "bool")


@I.ir_module
class Before:
    @R.function
    def main(x: X, one: ONE, two: TWO):
        R.func_attr({"num_outputs": 1})
        y = R.add(x, x)
        return (y, one, two)


def test_decisions_become_one_result():
    @I.ir_module
    class Expected:
        @T.prim_func(private=True)
        def concatenate(
            part0: T.Buffer((2, 3), "bool"),
            part1: T.Buffer((2, 2), "bool"),
            whole: T.Buffer((2, 5), "bool"),
        ):
            T.func_attr({"tirx.noalias": True})
            for n in range(2):
                for c in range(3):
                    whole[n, c] = part0[n, c]
                for c in range(2):
                    whole[n, 3 + c] = part1[n, c]

        @R.function
        def main(x: X, one: ONE, two: TWO) -> R.Tuple(X, BOTH):
            R.func_attr({"num_outputs": 1})
            y = R.add(x, x)
            opened = R.call_tir(Expected.concatenate, (one, two), BOTH)
            return (y, opened)

    assert_pass(ConcatenateDecisions(), Before, Expected)


def test_they_lie_side_by_side():
    rng = np.random.default_rng(0)
    one, two = rng.random((2, 3)) < 0.5, rng.random((2, 2)) < 0.5
    x = rng.random((2, 3)).astype("float32")
    y, opened = run(ConcatenateDecisions()(Before), x, one, two)
    np.testing.assert_array_equal(y, 2 * x)
    np.testing.assert_array_equal(opened, np.concatenate([one, two], axis=1))


@pytest.mark.parametrize("outputs", [2, 3])
def test_leaves_none_and_one(outputs):
    mod = tvm.IRModule({"main": Before["main"].with_attr("num_outputs", outputs)})
    assert_unchanged(ConcatenateDecisions(), mod)
    without = tvm.IRModule({"main": Before["main"].without_attr("num_outputs")})
    assert_unchanged(ConcatenateDecisions(), without)
    assert isinstance(without["main"], relax.Function)
