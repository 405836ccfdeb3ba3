# SPDX-License-Identifier: Apache-2.0
import pytest
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
from tvm_dynprune.passes.canonicalize_pooling import CanonicalizePooling

SHAPE = (2, 3, 4, 6)
X = R.Tensor(SHAPE, "float32")


@I.ir_module
class Kept:
    @R.function
    def main(x: X):
        with R.dataflow():
            z = R.mean(x, axis=[2, 3], keepdims=True)
            R.output(z)
        return z


@I.ir_module
class Dropped:
    @R.function
    def main(x: X):
        with R.dataflow():
            y = R.mean(x, axis=[2, 3], keepdims=True)
            z = R.reshape(y, (2, 3))
            R.output(z)
        return z


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: op.nn.adaptive_avg_pool2d(x, (1, 1)),
        lambda x: op.nn.avg_pool2d(x, (4, 6)),
        lambda x: op.nn.avg_pool2d(x, (4, 6), (2, 2)),
        lambda x: op.mean(x, axis=[-1, -2], keepdims=True),
    ],
)
def test_global_averages_become_one_mean(pool):
    assert_pass(CanonicalizePooling, Graph.build(lambda g, x: g.emit(pool(x)), SHAPE), Kept)


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_dropped_axes_become_a_reshape(axes):
    before = Graph.build(lambda g, x: g.emit(op.mean(x, axis=axes)), SHAPE)
    assert_pass(CanonicalizePooling, before, Dropped)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: op.nn.adaptive_avg_pool2d(x, (3, 1)),
        lambda x: op.nn.avg_pool2d(x, (4, 4)),
        lambda x: op.nn.avg_pool2d(x, (4, 6), padding=1),
        lambda x: op.nn.avg_pool2d(x, (4, 6), (9, 9), padding=1),
        lambda x: op.nn.max_pool2d(x, (4, 6)),
        lambda x: op.mean(x, axis=[1, 2], keepdims=True),
        lambda x: op.mean(x, axis=[0, 2, 3], keepdims=True),
        lambda x: op.mean(x),
        lambda x: op.sum(x, axis=[2, 3], keepdims=True),
    ],
)
def test_leaves_other_poolings(pool):
    assert_unchanged(CanonicalizePooling, Graph.build(lambda g, x: g.emit(pool(x)), SHAPE))


def test_leaves_a_mean_of_another_rank():
    mean = Graph.build(lambda g, x: g.emit(op.mean(x, axis=[1, 2])), (2, 3, 4))
    assert_unchanged(CanonicalizePooling, mean)


def test_an_adaptive_pooling_with_equal_windows_is_a_plain_one():
    before = Graph.build(lambda g, x: g.emit(op.nn.adaptive_avg_pool2d(x, (2, 3))), SHAPE)
    after = assert_promises(CanonicalizePooling, before)
    assert ops(after) == ["nn.avg_pool2d"]
    assert_same_numbers(before, after)


def test_an_adaptive_pooling_to_the_same_size_is_none():
    def body(g, x):
        return g.relu(g.emit(op.nn.adaptive_avg_pool2d(x, SHAPE[2:])))

    assert ops(CanonicalizePooling(Graph.build(body, SHAPE))) == ["nn.relu"]
