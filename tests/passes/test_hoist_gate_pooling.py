# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I, relax as R

from tests.passes.util import (
    Graph,
    assert_pass,
    assert_promises,
    assert_same_numbers,
    assert_unchanged,
    ops,
    sequence,
)
from tvm_dynprune.passes.canonicalize_pooling import CanonicalizePooling
from tvm_dynprune.passes.hoist_gate_pooling import HoistGatePooling

SHAPE = (2, 8, 6, 5)
X = R.Tensor(SHAPE, "float32")
W = relax.const(np.ones((4, 8, 1, 1), "float32"))
B = relax.const(np.arange(4, dtype="float32").reshape(1, 4, 1, 1))


def test_pools_before_the_convolution_and_its_bias():
    @I.ir_module
    class Before:
        @R.function
        def main(x: X):
            with R.dataflow():
                y = R.nn.conv2d(x, W)
                y1 = R.add(y, B)
                z = R.mean(y1, axis=[2, 3], keepdims=True)
                R.output(z)
            return z

    @I.ir_module
    class Expected:
        @R.function
        def main(x: X):
            with R.dataflow():
                p = R.mean(x, axis=[2, 3], keepdims=True)
                y = R.nn.conv2d(p, W)
                z = R.add(y, B)
                R.output(z)
            return z

    assert_pass(HoistGatePooling, Before, Expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [0, (0, 1, 2, 1)])
def test_keeps_the_numbers(bias, groups, padding):
    def body(g, x):
        y = g.conv(x, 4, 1, bias=bias, groups=groups, padding=padding)
        return g.emit(op.mean(y, axis=[2, 3], keepdims=True))

    before = Graph.build(body, SHAPE)
    after = assert_promises(HoistGatePooling, before)
    assert ops(after) == ["mean", "nn.conv2d", *["add"] * bias]
    assert_same_numbers(before, after)


@pytest.mark.parametrize(
    "body",
    [
        lambda g, x: g.conv(x, 4, 3),
        lambda g, x: g.conv(x, 4, 1, strides=2),
        lambda g, x: g.relu(g.conv(x, 4, 1)),
        lambda g, x: g.emit(op.add(g.conv(x, 4, 1), g.constant(1, 1, 6, 5))),
        lambda g, x: g.emit(op.multiply(x, x)),
    ],
)
def test_leaves_what_does_not_commute_with_the_mean(body):
    def pooled(g, x):
        return g.emit(op.mean(body(g, x), axis=[2, 3], keepdims=True))

    assert_unchanged(HoistGatePooling, Graph.build(pooled, SHAPE))


@pytest.mark.parametrize("axis", [[1, 2], [0, 2, 3]])
def test_leaves_a_mean_over_other_axes(axis):
    def body(g, x):
        return g.emit(op.mean(g.conv(x, 4, 1), axis=axis, keepdims=True))

    assert_unchanged(HoistGatePooling, Graph.build(body, SHAPE))


@pytest.mark.parametrize("bias", [False, True])
def test_leaves_a_convolution_whose_result_has_another_user(bias):
    def body(g, x):
        y = g.conv(x, 4, 1, bias=bias)
        return g.emit(op.mean(y, axis=[2, 3], keepdims=True)), g.relu(y)

    assert_unchanged(HoistGatePooling, Graph.build(body, SHAPE))


def test_needs_canonical_pooling():
    def body(g, x):
        return g.emit(op.nn.adaptive_avg_pool2d(g.conv(x, 4, 1), (1, 1)))

    before = Graph.build(body, SHAPE)
    assert_unchanged(HoistGatePooling, before)
    after = sequence(CanonicalizePooling, HoistGatePooling)(before)
    assert ops(after) == ["mean", "nn.conv2d"]
