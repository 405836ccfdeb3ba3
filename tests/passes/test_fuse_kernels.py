# SPDX-License-Identifier: Apache-2.0
from functools import partial

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
    composites,
    ops,
)
from tvm_dynprune.passes.fuse_kernels import FuseKernels

SHAPE = (2, 8, 6, 6)
X, MASK = R.Tensor((2, 3, 5, 5), "float32"), R.Tensor((2, 4, 1, 1), "float32")
WT, BT, YT = (R.Tensor(s, "float32") for s in [(4, 3, 3, 3), (1, 4, 1, 1), (2, 4, 3, 3)])
W = relax.const(np.ones((4, 3, 3, 3), "float32"))
B = relax.const(np.ones((1, 4, 1, 1), "float32"))


def test_makes_a_convolution_and_its_epilogue_one_function():
    @I.ir_module
    class Before:
        @R.function
        def main(x: X, logits: MASK, other: YT):
            with R.dataflow():
                mask = R.astype(R.greater(logits, R.const(0, "float32")), "float32")
                conv1 = R.nn.conv2d(x, W)
                y1 = R.add(conv1, B)
                y2 = R.nn.relu(y1)
                y3 = R.multiply(y2, mask)
                y4 = R.add(y3, other)
                z = R.clip(y4, 0, 6)
                R.output(z)
            return z

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def conv1(x: X, weight: WT, bias: BT, scale: MASK, residual: YT) -> YT:
            R.func_attr(
                {
                    "Composite": "dynprune.conv2d",
                    "binary_scale": 1,
                    "epilogue": ["bias", "relu", "scale", "residual", "clip:0.0:6.0"],
                    "layer": "conv1",
                    "roles": ["x", "weight", "bias", "scale", "residual"],
                }
            )
            with R.dataflow():
                y = R.nn.conv2d(x, weight)
                y1 = R.add(y, bias)
                y2 = R.nn.relu(y1)
                y3 = R.multiply(y2, scale)
                y4 = R.add(y3, residual)
                z = R.clip(y4, 0, 6)
                R.output(z)
            return z

        @R.function
        def main(x: X, logits: MASK, other: YT) -> YT:
            with R.dataflow():
                mask = R.astype(R.greater(logits, R.const(0, "float32")), "float32")
                z = Expected.conv1(x, W, B, mask, other)
                R.output(z)
            return z

    assert_pass(FuseKernels(), Before, Expected)


SILU = 'formula:["multiply", "x", ["sigmoid", "x"]]'


def silu(g: Graph, x):
    """As importers write it."""
    return g.times(x, g.emit(op.sigmoid(x)))


def epilogue_of(body, *shapes) -> list[str]:
    """The epilogue of the composite made from the convolution named "conv1"."""
    before = Graph.build(body, *(shapes or [SHAPE]))
    after = assert_promises(FuseKernels(), before)
    assert_same_numbers(before, after)
    return [str(step) for step in composites(after)["conv1"].attrs["epilogue"]]


@pytest.mark.parametrize(
    ("steps", "epilogue"),
    [
        (lambda g, y, m, r: y, []),
        (lambda g, y, m, r: g.relu(y), ["relu"]),
        (lambda g, y, m, r: g.times(y, m), ["scale"]),
        (lambda g, y, m, r: g.relu6(g.times(y, m)), ["scale"]),
        (lambda g, y, m, r: g.add(y, r), ["residual"]),
        (lambda g, y, m, r: g.add(r, y), ["residual"]),
        (lambda g, y, m, r: g.relu(g.add(r, g.times(y, m))), ["scale", "residual", "relu"]),
        (lambda g, y, m, r: g.times(g.add(y, r), m), ["residual"]),
        (lambda g, y, m, r: g.relu(g.relu6(y)), ["clip:0.0:6.0"]),
        (lambda g, y, m, r: g.add(g.add(y, r), r), ["residual"]),
        (lambda g, y, m, r: g.times(g.times(y, m), m), ["scale"]),
        (lambda g, y, m, r: g.emit(op.clip(y, 1.0, 6.0)), ["clip:1.0:6.0"]),
        (lambda g, y, m, r: g.emit(op.clip(g.add(y, r), 1.0, 6.0)), ["residual"]),
        (lambda g, y, m, r: g.emit(op.clip(y, -1.0, 6.0)), ["clip:-1.0:6.0"]),
        (lambda g, y, m, r: g.emit(op.nn.gelu(y)), ['formula:["nn.gelu", "x"]']),
        (lambda g, y, m, r: g.add(y, y), ['formula:["add", "x", "x"]']),
        (lambda g, y, m, r: g.times(silu(g, y), m), [SILU, "scale"]),
        (lambda g, y, m, r: silu(g, g.add(y, r)), ["residual", SILU]),
        (lambda g, y, m, r: g.times(silu(g, y), r), [SILU]),
    ],
)  # fmt: skip
def test_epilogue_steps_in_their_order(steps, epilogue):
    def body(g, x, residual, logits):
        mask = g.relu(logits)
        return steps(g, g.conv(x, 8, name="conv1"), mask, residual)

    assert epilogue_of(body, SHAPE, SHAPE, (2, 8, 1, 1)) == epilogue


def test_a_depthwise_kernel_without_bias_has_an_activation_inside_that_keeps_zeros():
    def body(g, x, *, activation):
        return activation(g, g.depthwise(x, "conv1"))

    for activation, epilogue in ((silu, [SILU]), (lambda g, y: g.emit(op.sigmoid(y)), [])):
        assert epilogue_of(partial(body, activation=activation)) == epilogue


def test_a_result_with_another_user_ends_the_epilogue():
    def body(g, x):
        y = g.conv(x, 8, name="conv1", bias=True)
        return g.relu(y), g.relu6(y)

    assert epilogue_of(body) == ["bias"]


def test_a_result_that_is_returned_ends_the_epilogue():
    def body(g, x):
        y = g.conv(x, 8, name="conv1")
        return y, g.relu(y)

    assert epilogue_of(body) == []


def test_what_depends_on_the_convolution_is_no_argument_of_it():
    def body(g, x):
        y = g.relu(g.conv(x, 8, name="conv1"))
        return g.add(g.times(y, g.gate(y, 8)), g.relu6(y))

    assert epilogue_of(body) == ["relu"]


def test_one_addition_is_the_residual_of_one_of_two_convolutions():
    def body(g, x):
        return g.relu(g.add(g.conv(x, 8, name="conv1"), g.conv(x, 8, 1, name="conv2")))

    before = Graph.build(body, SHAPE)
    after = assert_promises(FuseKernels(), before)
    assert_same_numbers(before, after)
    with_residual = [
        name for name, f in composites(after).items() if "residual" in f.attrs["roles"]
    ]
    assert len(composites(after)) == 2
    assert len(with_residual) == 1


@pytest.mark.parametrize("bias", [False, True])
def test_depthwise_has_no_residual(bias):
    def body(g, x, residual):
        y = g.depthwise(x, "conv1", bias=bias)
        return g.add(g.times(g.relu6(y), g.gate(x, 8)), residual)

    assert epilogue_of(body, SHAPE, SHAPE) == [*["bias"] * bias, "clip:0.0:6.0", "scale"]


@pytest.mark.parametrize(
    ("pool", "kind"),
    [
        (lambda x: op.nn.max_pool2d(x, (2, 2), (2, 2)), "max_pool2d"),
        (lambda x: op.nn.max_pool2d(x, (3, 3), (2, 2), ceil_mode=True), "max_pool2d"),
        (lambda x: op.nn.avg_pool2d(x, (3, 3), (1, 1), padding=1), "avg_pool2d"),
        (lambda x: op.nn.avg_pool2d(x, (2, 2), (2, 2), ceil_mode=True), "avg_pool2d"),
        (lambda x: op.mean(x, axis=[2, 3], keepdims=True), "global_average"),
    ],
)
def test_poolings_become_kernels(pool, kind):
    before = Graph.build(lambda g, x: g.emit(pool(x), "pool"), SHAPE)
    after = assert_promises(FuseKernels(), before)
    assert_same_numbers(before, after)
    (function,) = composites(after).values()
    assert function.attrs["Composite"] == f"dynprune.{kind}"


def transposed(g, x, **kw):
    weight = g.constant(8, 6 // kw.get("groups", 1), kw.pop("kernel", 3), 3)
    return g.emit(op.nn.conv2d_transpose(x, weight, kernel_layout="IOHW", **kw), "up")


@pytest.mark.parametrize(
    "body",
    [
        lambda g, x: g.emit(op.nn.avg_pool2d(x, (4, 4), (4, 4), ceil_mode=True)),
        lambda g, x: g.emit(op.mean(x, axis=[2, 3])),
        lambda g, x: g.emit(op.mean(x, axis=[1], keepdims=True)),
        lambda g, x: g.emit(op.nn.max_pool2d(x, (2, 2), layout="NHWC")),
        lambda g, x: g.relu(x),
        lambda g, x: transposed(g, x, groups=2),
        lambda g, x: transposed(g, x, dilation=2),
        lambda g, x: transposed(g, x, kernel=1, strides=2),  # pixels that nothing is added to
        lambda g, x: g.emit(op.image.resize2d(x, (9, 7), method="cubic")),
    ],
)
def test_leaves_what_no_kernel_computes(body):
    assert_unchanged(FuseKernels(), Graph.build(body, SHAPE))


@pytest.mark.parametrize(("channels", "groups"), [(4, 2), (16, 8)])
def test_grouped_convolutions_that_are_not_depthwise(channels, groups):
    def body(g, x):
        return g.relu(g.conv(x, channels, groups=groups, bias=True))

    before = Graph.build(body, SHAPE)
    after = assert_promises(FuseKernels(), before)
    assert_same_numbers(before, after)
    (function,) = composites(after).values()
    assert function.attrs["Composite"] == "dynprune.grouped_conv2d"
    assert list(function.attrs["epilogue"]) == ["bias", "relu"]


def test_a_transposed_convolution_takes_bias_and_activation_but_no_mask():
    def body(g, x, mask):
        y = g.emit(op.add(transposed(g, x, strides=2), g.constant(1, 6, 1, 1)))
        return g.times(g.relu(y), mask)

    before = Graph.build(body, SHAPE, (SHAPE[0], 6, 1, 1))
    after = assert_promises(FuseKernels(), before)
    assert_same_numbers(before, after)
    assert ops(after) == ["up", "multiply"]
    assert list(composites(after)["up"].attrs["epilogue"]) == ["bias", "relu"]


@pytest.mark.parametrize("method", ["nearest_neighbor", "linear"])
def test_resized_planes_become_kernels(method):
    def body(g, x):
        return g.emit(op.image.resize2d(x, (9, 7), method=method), "resized")

    before = Graph.build(body, SHAPE)
    after = assert_promises(FuseKernels(), before)
    assert_same_numbers(before, after)
    assert composites(after)["resized"].attrs["Composite"] == "dynprune.resize2d"


def excited(g, x, channels):
    """A 1x1 convolution of what a squeeze and excitation scales."""
    y = g.relu(g.conv(x, 8, name="first"))
    pooled = g.emit(op.mean(y, axis=[2, 3], keepdims=True))
    scale = g.emit(op.sigmoid(g.conv(pooled, 8, 1, name="excite")))
    return g.conv(g.emit(op.multiply(scale, y)), channels, 1, name="last")


def test_weights_take_in_what_scales_the_input():
    before = Graph.build(lambda g, x: excited(g, x, 36), (1, *SHAPE[1:]))
    after = assert_promises(FuseKernels(), before)
    assert_same_numbers(before, after)
    assert "multiply" not in ops(after)
    assert list(composites(after)["last"].attrs["roles"]) == ["x", "weight", "scale_in"]


@pytest.mark.parametrize(("batch", "channels"), [(1, 37), (2, 8)])
def test_weights_do_not_where_they_are_more_or_there_are_several_samples(batch, channels):
    after = FuseKernels()(Graph.build(lambda g, x: excited(g, x, channels), (batch, *SHAPE[1:])))
    assert "multiply" in ops(after)


def norm(g, x):
    """A batch norm that no convolution takes in."""
    y = g.emit(op.multiply(x, g.constant(1, 8, 1, 1)), "norm")
    return g.emit(op.add(y, g.constant(1, 8, 1, 1)))


def test_a_batch_norm_before_its_convolution_is_a_kernel():
    def body(g, x):
        pooled = g.emit(op.nn.max_pool2d(g.conv(x, 8, name="first"), (2, 2)), "pooled")
        return g.conv(g.relu(norm(g, pooled)), 4, name="second")

    before = Graph.build(body, SHAPE)
    after = assert_promises(FuseKernels(), before)
    assert_same_numbers(before, after)
    assert ops(after) == ["first", "pooled", "norm", "second"]
    assert list(composites(after)["norm"].attrs["epilogue"]) == ["bias", "relu"]


def test_a_batch_norm_after_an_activation_is_part_of_the_convolution():
    def body(g, x):
        y = norm(g, g.prelu(g.conv(x, 8, name="first")))
        return g.conv(g.relu(y), 4, name="second")

    before = Graph.build(body, SHAPE)
    after = assert_promises(FuseKernels(), before)
    assert_same_numbers(before, after)
    assert ops(after) == ["first", "second"]
    factors = ["factor_0", "factor_1", "factor_2"]
    assert list(composites(after)["first"].attrs["roles"]) == ["x", "weight", *factors]


def test_group_normalisation_takes_activations_and_a_residual():
    def body(g, x):
        y = g.emit(op.nn.group_norm(x, g.constant(8), g.constant(8), 2, 1, [2, 3]), "norm")
        return g.relu(g.add(g.prelu(y), x))

    before = Graph.build(body, (1, 8, 8, 4))
    after = assert_promises(FuseKernels(), before)
    assert_same_numbers(before, after)
    assert ops(after) == ["norm"]
    prelu = 'formula:["nn.leakyrelu", "x", ["factor", 0]]'
    assert list(composites(after)["norm"].attrs["epilogue"]) == [prelu, "residual", "relu"]


def test_what_normalises_an_image_is_none():
    after = FuseKernels()(Graph.build(lambda g, x: g.conv(norm(g, x), 4), SHAPE))
    assert list(composites(after)) == ["conv"]


def test_what_is_part_of_an_activation_is_none():
    def body(g, x):
        y = g.conv(x, 8)
        three, sixth = relax.const(3.0, "float32"), relax.const(1 / 6, "float32")
        clipped = g.emit(op.clip(g.emit(op.add(y, three)), 0, 6))
        return g.emit(op.multiply(y, g.emit(op.multiply(clipped, sixth))))

    after = assert_promises(FuseKernels(), Graph.build(body, SHAPE))
    assert ops(after) == ["conv"]


def test_layer_normalisation_over_channels_becomes_a_kernel():
    def body(g, x):
        y = g.emit(op.nn.layer_norm(x, g.constant(8), g.constant(8), [1], epsilon=1e-5), "norm")
        return g.emit(op.nn.layer_norm(y, g.constant(8), g.constant(8), [2], epsilon=1e-5))

    after = assert_promises(FuseKernels(), Graph.build(body, (1, 8, 8, 4)))
    assert ops(after) == ["norm", "nn.layer_norm"]


def test_leaves_a_convolution_whose_weight_is_computed():
    body = lambda g, x, w: g.emit(op.nn.conv2d(x, w))  # noqa: E731
    assert_unchanged(FuseKernels(), Graph.build(body, SHAPE, (4, 8, 1, 1)))


def test_layers_of_the_same_name_get_functions_of_their_own():
    def body(g, x):
        return g.conv(g.conv(x, 8, name="conv1"), 8, name="conv1")

    after = assert_promises(FuseKernels(), Graph.build(body, SHAPE))
    assert ops(after) == list(composites(after))
    assert len(composites(after)) == 2


def test_a_saliency_is_no_binary_scale():
    def body(g, x):
        pooled = g.emit(op.mean(x, axis=[2, 3], keepdims=True))
        return g.times(g.conv(x, 8, name="conv1"), g.relu(g.conv(pooled, 8, 1)))

    after = FuseKernels()(Graph.build(body, SHAPE))
    assert composites(after)["conv1"].attrs["binary_scale"] == 0


def test_a_bias_of_one_number_is_a_bias():
    def body(g, x):
        bias = relax.const(np.full((1, 8, 1, 1), 0.25, "float32"))
        return g.relu(g.emit(op.add(g.conv(x, 8, name="conv1"), bias)))

    assert epilogue_of(body) == ["bias", "relu"]
