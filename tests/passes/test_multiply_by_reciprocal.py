# SPDX-License-Identifier: Apache-2.0
import numpy as np
from tvm import relax
from tvm.relax import op

from tests.passes.util import Graph, assert_pass, assert_same_numbers, assert_unchanged
from tvm_dynprune.passes.multiply_by_reciprocal import MultiplyByReciprocal

X = (2, 3, 4, 5)
STD = np.array([0.5, 4.0, -2.0], "float32").reshape(1, 3, 1, 1)


def divided(divisor: np.ndarray):
    return Graph.build(lambda g, x: g.emit(op.divide(x, relax.const(divisor))), X)


def test_a_constant_divisor_becomes_a_factor():
    expected = Graph.build(lambda g, x: g.emit(op.multiply(x, relax.const(1 / STD))), X)
    assert_pass(MultiplyByReciprocal, divided(STD), expected)


def test_the_numbers_stay():
    before = divided(np.float32(3.0))
    assert_same_numbers(before, MultiplyByReciprocal(before))


def test_leaves_zero_and_other_types_and_tensors():
    assert_unchanged(MultiplyByReciprocal, divided(np.float32(0.0)))
    both = Graph.build(lambda g, x, y: g.emit(op.divide(x, y)), X, X)
    assert_unchanged(MultiplyByReciprocal, both)

    def whole_numbers(g, x):
        steps = g.emit(op.astype(x, "int32"))
        return g.emit(op.divide(steps, relax.const(np.int32(2))))

    assert_unchanged(MultiplyByReciprocal, Graph.build(whole_numbers, X))
