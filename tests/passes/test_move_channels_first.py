# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from tvm import relax
from tvm.relax import op

from tests.passes.util import Graph, assert_promises, assert_same_numbers, assert_unchanged, ops
from tvm_dynprune.passes.move_channels_first import MoveChannelsFirst

SHAPE = (2, 6, 4, 5)


def last(g, x):
    return g.emit(op.permute_dims(x, [0, 2, 3, 1]))


def first(g, x):
    return g.emit(op.permute_dims(x, [0, 3, 1, 2]))


def norm(g, x, axes=(-1,)):
    return g.emit(op.nn.layer_norm(x, g.constant(6), g.constant(6), list(axes), epsilon=1e-5))


def check(body, expected: list[str], *shapes) -> None:
    before = Graph.build(body, SHAPE, *shapes)
    after = assert_promises(MoveChannelsFirst, before)
    assert ops(after) == expected
    assert_same_numbers(before, after)


def test_a_block_of_convnext():
    def body(g, x):
        y = norm(g, last(g, x))
        y = g.emit(op.add(g.emit(op.matmul(y, g.constant(6, 24))), g.constant(24)))
        y = g.emit(op.matmul(g.emit(op.nn.gelu(y)), g.constant(24, 6)))
        y = g.emit(op.multiply(y, g.constant(6)))
        return g.add(x, first(g, y))

    steps = ["nn.layer_norm", "nn.conv2d", "add", "nn.gelu", "nn.conv2d", "multiply", "add"]
    check(body, steps)


def test_pixels_as_rows():
    def body(g, x):
        rows = g.emit(op.reshape(norm(g, last(g, x)), (40, 6)))
        y = g.emit(op.add(g.emit(op.matmul(rows, g.constant(6, 24))), g.constant(24)))
        y = g.relu(g.emit(op.reshape(y, (2, 4, 5, 24))))
        y = g.emit(op.matmul(g.emit(op.reshape(y, (40, 24))), g.constant(24, 6)))
        return first(g, g.emit(op.reshape(y, (2, 4, 5, 6))))

    check(body, ["nn.layer_norm", "nn.conv2d", "add", "nn.relu", "nn.conv2d"])


def test_rows_that_become_other_planes():
    def body(g, x):
        rows = g.relu(g.emit(op.reshape(last(g, x), (40, 6))))
        return first(g, g.emit(op.reshape(rows, (4, 2, 5, 6))))

    check(body, ["nn.relu", "permute_dims", "reshape", "reshape", "permute_dims"])


def test_a_sum_of_two():
    def body(g, x, y):
        return first(g, g.emit(op.add(last(g, x), last(g, y))))

    check(body, ["add"], SHAPE)


def test_a_number_for_all_channels():
    half = relax.const(np.float32(0.5))
    check(lambda g, x: first(g, g.emit(op.multiply(half, last(g, x)))), ["multiply"])


def test_what_was_last_stays_last_where_it_was_first_before():
    def body(g, x):
        return last(g, first(g, x))

    assert ops(MoveChannelsFirst(Graph.build(body, SHAPE))) == []


def test_what_reads_them_last_gets_them_last():
    def body(g, x):
        return g.emit(op.mean(g.relu(last(g, x)), axis=[3]))

    check(body, ["nn.relu", "permute_dims", "mean"])


@pytest.mark.parametrize(
    "body",
    [
        lambda g, x: g.emit(op.permute_dims(g.relu(x), [0, 1, 3, 2])),
        lambda g, x: g.emit(op.mean(last(g, x), axis=[3])),
        lambda g, x: g.emit(op.add(last(g, x), g.constant(4, 5, 6))),
        lambda g, x: norm(g, g.emit(op.reshape(x, (40, 6)))),
        lambda g, x: g.emit(op.matmul(last(g, x), g.constant(2, 4, 6, 3))),
    ],
)
def test_leaves_the_rest(body):
    assert_unchanged(MoveChannelsFirst, Graph.build(body, SHAPE))
