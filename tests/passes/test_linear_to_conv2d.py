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
from tvm_dynprune.passes.linear_to_conv2d import LinearToConv2d

X, FLAT = R.Tensor((2, 3, 2, 2), "float32"), R.Tensor((2, 12), "float32")
WEIGHT = np.arange(60, dtype="float32").reshape(12, 5)
BIAS = np.arange(5, dtype="float32")
W, B = relax.const(WEIGHT), relax.const(BIAS)
PLANE = relax.const(np.ascontiguousarray(WEIGHT.T).reshape(5, 3, 2, 2))
POINT = relax.const(np.ascontiguousarray(WEIGHT.T).reshape(5, 12, 1, 1))
B4 = relax.const(BIAS.reshape(1, 5, 1, 1))


def test_a_linear_layer_over_a_flattened_plane_takes_the_plane():
    @I.ir_module
    class Before:
        @R.function
        def main(x: X):
            with R.dataflow():
                y = R.reshape(x, (2, 12))
                y1 = R.matmul(y, W)
                y2 = R.add(y1, B)
                z = R.nn.relu(y2)
                R.output(z)
            return z

    @I.ir_module
    class Expected:
        @R.function
        def main(x: X):
            with R.dataflow():
                y = R.nn.conv2d(x, PLANE)
                y1 = R.add(y, B4)
                y2 = R.nn.relu(y1)
                z = R.reshape(y2, (2, 5))
                R.output(z)
            return z

    assert_pass(LinearToConv2d, Before, Expected)


def test_a_linear_layer_over_a_vector_becomes_pointwise():
    @I.ir_module
    class Before:
        @R.function
        def main(x: FLAT):
            with R.dataflow():
                z = R.matmul(x, W)
                R.output(z)
            return z

    @I.ir_module
    class Expected:
        @R.function
        def main(x: FLAT):
            with R.dataflow():
                x4 = R.reshape(x, (2, 12, 1, 1))
                y = R.nn.conv2d(x4, POINT)
                z = R.reshape(y, (2, 5))
                R.output(z)
            return z

    assert_pass(LinearToConv2d, Before, Expected)


def test_a_classifier_stays_convolutional_to_its_end():
    def body(g, x):
        y = g.emit(op.reshape(x, (2, 48)))
        y = g.emit(
            op.nn.relu(g.emit(op.add(g.emit(op.matmul(y, g.constant(48, 8))), g.constant(8))))
        )
        y = g.emit(op.multiply(y, g.constant(1, 8)))
        y = g.emit(op.clip(y, 0.0, 6.0))
        return g.emit(op.subtract(g.emit(op.matmul(y, g.constant(8, 5))), g.constant(1)))

    before = Graph.build(body, (2, 3, 4, 4))
    after = assert_promises(LinearToConv2d, before)
    plane = ["nn.conv2d", "add", "nn.relu", "multiply", "clip"]
    assert ops(after) == [*plane, "nn.conv2d", "subtract", "reshape"]
    assert_same_numbers(before, after)


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ((2, 3, 4), lambda g, x: op.matmul(x, g.constant(4, 5))),
        ((2, 3, 4, 4), lambda g, x: op.matmul(x, g.constant(4, 5))),
        ((4, 5), lambda g, x: op.matmul(g.constant(2, 4), x)),
        ((3, 3), lambda g, x: op.matmul(x, x)),
    ],
)
def test_leaves_other_products(shape, body):
    assert_unchanged(LinearToConv2d, Graph.build(lambda g, x: g.emit(body(g, x)), shape))


def test_merges_reshapes_in_a_row():
    @I.ir_module
    class Before:
        @R.function
        def main(x: X):
            with R.dataflow():
                y = R.reshape(x, (2, 12))
                y1 = R.reshape(y, (4, 6))
                y2 = R.nn.relu(y1)
                y3 = R.reshape(y2, (24,))
                z = R.reshape(y3, (4, 6))
                R.output(z)
            return z

    @I.ir_module
    class Expected:
        @R.function
        def main(x: X):
            with R.dataflow():
                y1 = R.reshape(x, (4, 6))
                z = R.nn.relu(y1)
                R.output(z)
            return z

    assert_pass(LinearToConv2d, Before, Expected)


def test_a_reshape_that_moves_the_batch_is_no_flattening():
    def body(g, x):
        y = g.emit(op.reshape(x, (6, 16)))
        return g.emit(op.matmul(y, g.constant(16, 5)))

    before = Graph.build(body, (2, 3, 4, 4))
    after = assert_promises(LinearToConv2d, before)
    assert_same_numbers(before, after)


@pytest.mark.parametrize("shape", [(5, 1), (5, 5), (1,), (1, 1, 5)])
def test_constants_broadcast_as_they_did(shape):
    def body(g, x):
        y = g.emit(op.matmul(x, g.constant(7, 5)))
        return g.emit(op.add(y, g.constant(*shape)))

    before = Graph.build(body, (5, 7))
    after = assert_promises(LinearToConv2d, before)
    assert_same_numbers(before, after)


def test_keeps_its_layers_name():
    def body(g, x):
        return g.emit(op.matmul(x, g.constant(7, 5)), "classifier")

    after = LinearToConv2d(Graph.build(body, (2, 7)))
    names = [binding.var.name for binding in after["main"].body.blocks[0].bindings]
    assert "classifier" in names
