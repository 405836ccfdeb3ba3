# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from tvm import relax, te, topi

from tests.passes.util import Graph, assert_promises, assert_same_numbers, assert_unchanged, ops
from tvm_dynprune.passes.canonicalize_clip import CanonicalizeClip

X = (2, 3, 4, 5)


def kernel(g: Graph, function, *arguments):
    """A call of the kernel that TVM makes of a function of tensor expressions."""
    return g.builder.emit_te(function, *arguments)


def clip(g: Graph, x):
    """As ONNX's Clip is imported."""
    lower = kernel(g, topi.maximum, x, relax.const(np.float32(0)))
    return kernel(g, topi.minimum, lower, relax.const(np.float32(6)))


def test_bounds_become_clips():
    before = Graph.build(clip, X)
    after = assert_promises(CanonicalizeClip(), before)
    assert ops(before) == ["call_tir", "call_tir"]
    assert ops(after) == ["clip", "clip"]
    assert_same_numbers(before, after)


def test_either_operand_may_be_the_number():
    def body(g, x):
        return kernel(g, topi.minimum, relax.const(np.float32(0.25)), x)

    before = Graph.build(body, X)
    after = assert_promises(CanonicalizeClip(), before)
    assert ops(after) == ["clip"]
    assert_same_numbers(before, after)


@pytest.mark.parametrize(
    "function",
    [
        topi.add,
        lambda x, bound: topi.maximum(x, bound) + 1,
        lambda x, bound: te.compute(x.shape, lambda n, c, i, j: te.max(x[n, c, 3 - i, j], bound())),
        lambda x, bound: topi.reshape(topi.maximum(x, bound), (6, 4, 5)),
    ],
)
def test_leaves_kernels_that_do_anything_else(function):
    graph = Graph.build(lambda g, x: kernel(g, function, x, relax.const(np.float32(0))), X)
    assert_unchanged(CanonicalizeClip(), graph)


def test_leaves_a_bound_that_is_not_known():
    graph = Graph.build(lambda g, x, bound: kernel(g, topi.maximum, x, bound), X, ())
    assert_unchanged(CanonicalizeClip(), graph)
