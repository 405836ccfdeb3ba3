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
)
from tvm_dynprune.passes.fold_batch_norm import FoldBatchNorm

X, MASK = R.Tensor((2, 3, 5, 5), "float32"), R.Tensor((2, 4, 1, 1), "float32")
rng = np.random.default_rng(0)
WEIGHT = rng.integers(-8, 8, (4, 3, 3, 3)).astype("float32")
GAMMA, BETA, MEAN = (rng.integers(1, 8, 4).astype("float32") for _ in range(3))
VARIANCE = np.array([0.25, 1, 4, 16], "float32")
FACTOR = GAMMA / np.sqrt(VARIANCE)
OFFSET = BETA - MEAN * FACTOR


def per_channel(values):
    return relax.const(values.reshape(1, -1, 1, 1).astype("float32"))


W, FOLDED = relax.const(WEIGHT), relax.const(WEIGHT * FACTOR[:, None, None, None])
A, B = per_channel(FACTOR), per_channel(OFFSET)
NORM = [relax.const(values) for values in (GAMMA, BETA, MEAN, VARIANCE)]
G, BE, M, V = NORM


def test_folds_a_batch_norm_into_weight_and_bias():
    @I.ir_module
    class Before:
        @R.function
        def main(x: X):
            with R.dataflow():
                y = R.nn.conv2d(x, W, padding=1)
                n = R.nn.batch_norm(y, G, BE, M, V, axis=1, epsilon=0.0, training=False)
                z = n[0]
                R.output(z)
            return z

    @I.ir_module
    class Expected:
        @R.function
        def main(x: X):
            with R.dataflow():
                y = R.nn.conv2d(x, FOLDED, padding=1)
                z = R.add(y, B)
                R.output(z)
            return z

    assert_pass(FoldBatchNorm, Before, Expected)


def test_folds_a_chain_of_per_channel_steps_into_one_bias():
    one = per_channel(np.ones(4))
    after = per_channel((np.ones(4) * FACTOR + OFFSET) / 2 - 1)
    weight = relax.const(WEIGHT * FACTOR[:, None, None, None] / 2)

    @I.ir_module
    class Before:
        @R.function
        def main(x: X):
            with R.dataflow():
                y = R.nn.conv2d(x, W)
                y1 = R.add(one, y)
                y2 = R.multiply(y1, A)
                y3 = R.add(y2, B)
                y4 = R.divide(y3, R.const(2.0, "float32"))
                z = R.subtract(y4, R.const(1.0, "float32"))
                R.output(z)
            return z

    @I.ir_module
    class Expected:
        @R.function
        def main(x: X):
            with R.dataflow():
                y = R.nn.conv2d(x, weight)
                z = R.add(y, after)
                R.output(z)
            return z

    assert_pass(FoldBatchNorm, Before, Expected)


def test_a_batch_norm_without_a_convolution_becomes_multiplication_and_addition():
    a, b = per_channel(FACTOR[:3]), per_channel(OFFSET[:3])
    gamma, beta, mean, variance = (relax.const(v[:3]) for v in (GAMMA, BETA, MEAN, VARIANCE))

    @I.ir_module
    class Before:
        @R.function
        def main(x: X):
            with R.dataflow():
                n = R.nn.batch_norm(x, gamma, beta, mean, variance, axis=1, epsilon=0.0)
                z = n[0]
                R.output(z)
            return z

    @I.ir_module
    class Expected:
        @R.function
        def main(x: X):
            with R.dataflow():
                y = R.multiply(x, a)
                z = R.add(y, b)
                R.output(z)
            return z

    assert_pass(FoldBatchNorm, Before, Expected)


@pytest.mark.parametrize(
    "step",
    [
        lambda g, y: op.multiply(y, g.constant(1, 1, 5, 5)),  # by place, not by channel
        lambda g, y: op.multiply(y, g.constant(5)),  # along the width, although of size C
        lambda g, y: op.add(y, g.constant(2, 5, 1, 1)),  # other numbers for each sample
        lambda g, y: op.divide(relax.const(1.0, "float32"), y),
        lambda g, y: op.nn.relu(y),
    ],
)
def test_leaves_what_is_not_affine_per_channel(step):
    assert_unchanged(
        FoldBatchNorm,
        Graph.build(lambda g, x: g.emit(step(g, g.conv(x, 5))), (2, 3, 5, 5)),
    )


def test_leaves_a_convolution_whose_result_has_another_user():
    def body(g, x):
        y = g.conv(x, 4)
        return g.emit(op.multiply(y, g.constant(1, 4, 1, 1))), g.relu(y)

    assert_unchanged(FoldBatchNorm, Graph.build(body, (2, 3, 5, 5)))


def test_leaves_a_convolution_whose_result_is_returned():
    def body(g, x):
        y = g.conv(x, 4)
        return y, g.emit(op.multiply(y, g.constant(1, 4, 1, 1)))

    assert_unchanged(FoldBatchNorm, Graph.build(body, (2, 3, 5, 5)))


def test_a_batch_norm_after_the_mask_stays_after_it():
    # The closed channel is then no longer 0, so nothing may move across the mask.
    def body(g, x, mask):
        gated = g.times(g.conv(x, 4), mask)
        norm = g.emit(op.nn.batch_norm(gated, *NORM, axis=1, training=False))
        return g.emit(relax.TupleGetItem(norm, 0))

    before = Graph.build(body, (2, 3, 5, 5), (2, 4, 1, 1))
    after = assert_promises(FoldBatchNorm, before)
    assert ops(after) == ["nn.conv2d", "multiply", "multiply", "add"]
    assert_same_numbers(before, after)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_keeps_the_numbers_with_groups_and_bias(groups):
    def body(g, x):
        y = g.conv(x, 4, bias=True, groups=groups, strides=2)
        norm = g.emit(op.nn.batch_norm(y, *NORM, axis=1, training=False))
        return g.relu(g.emit(relax.TupleGetItem(norm, 0)))

    before = Graph.build(body, (2, 4, 6, 5))
    after = assert_promises(FoldBatchNorm, before)
    assert ops(after) == ["nn.conv2d", "add", "nn.relu"]
    assert_same_numbers(before, after)


def test_keeps_the_numbers_of_a_transposed_convolution():
    def body(g, x):
        weight = g.constant(3, 4, 2, 2)
        y = g.emit(op.nn.conv2d_transpose(x, weight, 2, kernel_layout="IOHW"))
        norm = g.emit(op.nn.batch_norm(y, *NORM, axis=1, training=False))
        return g.relu(g.emit(relax.TupleGetItem(norm, 0)))

    before = Graph.build(body, (2, 3, 6, 5))
    after = assert_promises(FoldBatchNorm, before)
    assert ops(after) == ["nn.conv2d_transpose", "add", "nn.relu"]
    assert_same_numbers(before, after)


def test_the_folded_convolution_keeps_its_layers_name():
    def body(g, x):
        y = g.conv(x, 4, name="layer1_conv")
        return g.emit(op.multiply(y, g.constant(1, 4, 1, 1)))

    after = FoldBatchNorm(Graph.build(body, (2, 3, 5, 5)))
    first = after["main"].body.blocks[0].bindings[0]
    assert first.var.name == "layer1_conv"
