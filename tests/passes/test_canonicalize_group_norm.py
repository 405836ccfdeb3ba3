# SPDX-License-Identifier: Apache-2.0
import pytest
from tvm import relax
from tvm.relax import op

from tests.passes.util import Graph, assert_promises, assert_same_numbers, assert_unchanged, ops
from tvm_dynprune.passes.canonicalize_group_norm import CanonicalizeGroupNorm

SHAPE = (2, 12, 4, 5)


def normalised(g, r, *, axes, divisor=None):
    """``(r - mean) / sqrt(variance + epsilon)``, as the ONNX importer writes it."""
    mean = g.emit(op.mean(r, axis=axes, keepdims=True))
    variance = g.emit(op.variance(r if divisor is None else divisor, axis=axes, keepdims=True))
    root = g.emit(op.sqrt(g.emit(op.add(variance, relax.const(1e-3, "float32")))))
    return g.emit(op.divide(g.emit(op.subtract(r, mean)), root))


def affine(g, x, *shape):
    y = g.emit(op.multiply(x, g.constant(*shape)))
    return g.emit(op.add(y, g.constant(*shape)))


def grouped(g, x, groups, *shape):
    """A group norm over (N, G, *shape), with a factor and an offset for each group."""
    r = g.emit(op.reshape(x, (SHAPE[0], groups, *shape)))
    axes = list(range(2, 2 + len(shape)))
    y = affine(g, normalised(g, r, axes=axes), 1, groups, *(1 for _ in shape))
    return g.emit(op.reshape(y, SHAPE))


@pytest.mark.parametrize(
    "body",
    [
        lambda g, x: affine(g, normalised(g, x, axes=[2, 3]), 1, 12, 1, 1),
        lambda g, x: affine(g, grouped(g, x, 3, -1), 1, 12, 1, 1),
        lambda g, x: affine(g, grouped(g, x, 4, 3, 4, 5), 12, 1, 1),
        lambda g, x: normalised(g, x, axes=[-1, -2]),
    ],
)
def test_what_importers_write_is_one_operation(body):
    before = Graph.build(body, SHAPE)
    after = assert_promises(CanonicalizeGroupNorm, before)
    assert ops(after) == ["nn.group_norm"]
    assert_same_numbers(before, after)


def test_an_instance_norm_is_one_for_each_channel():
    def body(g, x):
        return g.emit(op.nn.instance_norm(x, g.constant(12), g.constant(12), 1, [2, 3]))

    before = Graph.build(body, (1, *SHAPE[1:]))
    after = assert_promises(CanonicalizeGroupNorm, before)
    assert ops(after) == ["nn.group_norm"]
    assert_same_numbers(before, after)


def test_what_others_read_stays():
    def body(g, x):
        y = normalised(g, x, axes=[2, 3])
        return affine(g, y, 1, 12, 1, 1), y

    before = Graph.build(body, SHAPE)
    after = assert_promises(CanonicalizeGroupNorm, before)
    assert ops(after) == ["nn.group_norm", "multiply", "add"]
    assert_same_numbers(before, after)


@pytest.mark.parametrize(
    "body",
    [
        lambda g, x: normalised(g, x, axes=[1]),
        lambda g, x: normalised(g, x, axes=[1, 2, 3]),
        lambda g, x: normalised(g, x, axes=[2, 3], divisor=g.relu(x)),
        lambda g, x: normalised(g, g.emit(op.reshape(x, (8, 3, -1))), axes=[2]),
        lambda g, x: affine(g, x, 1, 12, 1, 1),
        lambda g, x: g.emit(op.reshape(g.emit(op.reshape(x, (2, 3, -1))), SHAPE)),
    ],
)
def test_leaves_other_normalisations(body):
    assert_unchanged(CanonicalizeGroupNorm, Graph.build(body, SHAPE))
