# SPDX-License-Identifier: Apache-2.0
"""Small gated networks: what each convolution should go by, as `test_annotate_open` checks.

The kernels that follow from it are run by `test_lower_kernels`. An open set is written with the
names of its masks: "a", "a|b" (any), "a&b" (all), "[a,all]" (concatenation); "" for all channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.ir import Expr
from tvm.relax import Var, op

from tests.passes.util import Graph

Body = Callable[[Graph, Var], Expr | tuple[Expr, ...]]


@dataclass(frozen=True)
class Case:
    """A network over x (N, 16, 6, 6), and (open_in, open_out) of the layers that are named."""

    body: Body
    open_sets: dict[str, tuple[str, str]]


CASES: dict[str, Case] = {}


def case(**open_sets: tuple[str, str]) -> Callable[[Body], Body]:
    """Register a network under its function's name."""

    def register(body: Body) -> Body:
        CASES[body.__name__] = Case(body, open_sets)
        return body

    return register


# Forward: which channels can be non-zero.


@case(first=("", "a"), second=("a", ""))
def activation_inside_the_mask(g: Graph, x: Var):
    y = g.times(g.relu(g.conv(x, 16, name="first", bias=True)), g.gate(x, 16, 8, name="a"))
    return g.conv(y, 24, name="second")


@case(first=("", "a"), second=("a", "b"), third=("b", ""))
def layers_in_a_row(g: Graph, x: Var):
    y = g.times(g.relu(g.conv(x, 48, name="first", bias=True)), g.gate(x, 48, 16, name="a"))
    z = g.times(g.relu(g.conv(y, 32, name="second", bias=True)), g.gate(y, 32, 16, name="b"))
    return g.conv(z, 16, name="third")


@case(first=("", "a"), second=("a", ""))
def relu6_after_the_mask(g: Graph, x: Var):
    y = g.relu6(g.times(g.conv(x, 16, name="first"), g.gate(x, 16, name="a")))
    return g.conv(y, 24, name="second")


@case(first=("", "a"), second=("", ""))
def clip_that_lifts_zero_after_the_mask(g: Graph, x: Var):
    y = g.times(g.conv(x, 16, name="first"), g.gate(x, 16, name="a"))
    return g.conv(g.emit(op.clip(y, 0.5, 6.0)), 24, name="second")


@case(first=("", "a"), maximum=("", "a"), average=("", "a"), second=("a", ""))
def poolings(g: Graph, x: Var):
    y = g.times(g.relu(g.conv(x, 16, name="first", bias=True)), g.gate(x, 16, 2, name="a"))
    y = g.emit(op.nn.max_pool2d(y, (3, 3), (2, 2), padding=1), "maximum")
    y = g.emit(op.nn.avg_pool2d(y, (2, 2), (1, 1), padding=1), "average")
    return g.conv(y, 24, name="second")


@case(first=("", "a"), pool=("", "a"), second=("a", ""))
def classifier(g: Graph, x: Var):
    y = g.times(g.relu(g.conv(x, 32, name="first")), g.gate(x, 32, 4, name="a"))
    return g.conv(g.emit(op.mean(y, axis=[2, 3], keepdims=True), "pool"), 10, 1, name="second")


@case(first=("", "a"), depthwise=("", "a"), second=("a", ""))
def depthwise_without_bias(g: Graph, x: Var):
    y = g.times(g.conv(x, 16, name="first"), g.gate(x, 16, 4, name="a"))
    return g.conv(g.relu(g.depthwise(y)), 24, name="second")


@case(first=("", "a"), depthwise=("", ""), second=("", ""))
def depthwise_with_bias(g: Graph, x: Var):
    y = g.times(g.conv(x, 16, name="first"), g.gate(x, 16, 4, name="a"))
    return g.conv(g.relu(g.depthwise(y, bias=True)), 24, name="second")


@case(left=("", "a"), right=("", "b"), last=("[a,b]", ""))
def concatenation(g: Graph, x: Var):
    left = g.times(g.conv(x, 16, name="left"), g.gate(x, 16, 8, name="a"))
    right = g.times(g.conv(x, 32, 1, name="right"), g.gate(x, 32, 16, name="b"))
    return g.conv(g.relu(g.concat(left, right)), 24, name="last")


@case(left=("", "a"), right=("", ""), last=("[a,all]", ""))
def concatenation_with_an_open_part(g: Graph, x: Var):
    left = g.times(g.conv(x, 16, name="left"), g.gate(x, 16, 2, name="a"))
    return g.conv(g.concat(left, g.conv(x, 5, 1, name="right")), 24, name="last")


@case(left=("", "a"), right=("", "b"), pool=("", "[a,b]"), last=("[a,b]", ""))
def pooled_concatenation(g: Graph, x: Var):
    left = g.times(g.conv(x, 16, name="left"), g.gate(x, 16, 8, name="a"))
    right = g.times(g.conv(x, 16, 1, name="right"), g.gate(x, 16, 4, name="b"))
    y = g.emit(op.nn.max_pool2d(g.concat(left, right), (2, 2), (2, 2)), "pool")
    return g.conv(y, 24, name="last")


@case(left=("", "a"), right=("", "b"), last=("a|b", ""))
def addition_is_open_where_either_side_is(g: Graph, x: Var):
    left = g.times(g.conv(x, 16, name="left"), g.gate(x, 16, 8, name="a"))
    right = g.times(g.conv(x, 16, 1, name="right"), g.gate(x, 16, 8, name="b"))
    return g.conv(g.relu(g.add(left, right)), 24, name="last")


@case(left=("", "a"), last=("", ""))
def addition_of_an_ungated_tensor(g: Graph, x: Var):
    left = g.times(g.conv(x, 16, name="left"), g.gate(x, 16, 8, name="a"))
    return g.conv(g.relu(g.add(left, x)), 24, name="last")


@case(left=("", "a"), right=("", "a"), last=("a", ""))
def both_sides_of_an_addition_by_one_gate(g: Graph, x: Var):
    mask = g.gate(x, 16, 8, name="a")
    left = g.times(g.conv(x, 16, name="left"), mask)
    right = g.times(g.conv(x, 16, 1, name="right"), mask)
    return g.conv(g.relu(g.add(left, right)), 24, name="last")


@case(stem=("", "s"), inner=("s", "a"), outer=("a", "b"), last=("b|s", ""))
def residual_block_on_a_gated_stem(g: Graph, x: Var):
    h = g.times(g.relu(g.conv(x, 32, name="stem")), g.gate(x, 32, 8, name="s"))
    y = g.times(g.relu(g.conv(h, 32, name="inner", bias=True)), g.gate(h, 32, 16, name="a"))
    z = g.times(g.conv(y, 32, name="outer", bias=True), g.gate(y, 32, 16, name="b"))
    return g.conv(g.relu(g.add(z, h)), 24, name="last")


# Backward: which channels somebody needs.


@case(expand=("", "m"), depthwise=("", "m"), project=("m", ""))
def inverted_residual(g: Graph, x: Var):
    y = g.relu6(g.conv(x, 48, 1, name="expand", bias=True))
    y = g.times(g.relu6(g.depthwise(y, bias=True)), g.gate(x, 48, 16, name="m"))
    return g.add(g.conv(y, 16, 1, name="project", bias=True), x)


@case(expand=("", "m"), depthwise=("", "m"), project=("m", ""))
def inverted_residual_of_small_groups(g: Graph, x: Var):
    y = g.relu6(g.conv(x, 30, 1, name="expand", bias=True))
    y = g.times(g.relu6(g.depthwise(y, bias=True)), g.gate(x, 30, 3, name="m"))
    return g.add(g.conv(y, 16, 1, name="project", bias=True), x)


@case(first=("", "m"), pool=("", "m"), second=("m", ""))
def mask_after_a_pooling(g: Graph, x: Var):
    y = g.emit(op.nn.max_pool2d(g.relu(g.conv(x, 16, name="first", bias=True)), (2, 2)), "pool")
    return g.conv(g.times(y, g.gate(x, 16, 8, name="m")), 24, name="second")


@case(expand=("", "a&m"), depthwise=("", "a&m"), project=("a&m", ""))
def two_gates_meet(g: Graph, x: Var):
    y = g.times(g.relu(g.conv(x, 16, name="expand")), g.gate(x, 16, 8, name="a"))
    y = g.times(g.depthwise(y), g.gate(x, 16, 4, name="m"))
    return g.conv(y, 24, name="project")


@case(expand=("", ""), depthwise=("", "m"), other=("", ""))
def a_second_reader_needs_everything(g: Graph, x: Var):
    y = g.relu6(g.conv(x, 16, 1, name="expand", bias=True))
    z = g.times(g.depthwise(y, bias=True), g.gate(x, 16, 8, name="m"))
    return g.conv(z, 24, name="project"), g.conv(y, 24, name="other")


@case(expand=("", "m|n"), one=("", "m"), two=("", "n"))
def two_readers_need_what_either_needs(g: Graph, x: Var):
    y = g.relu6(g.conv(x, 16, 1, name="expand", bias=True))
    one = g.times(g.depthwise(y, "one", bias=True), g.gate(x, 16, 8, name="m"))
    two = g.times(g.depthwise(y, "two", bias=True), g.gate(x, 16, 8, name="n"))
    return g.conv(one, 24, name="left"), g.conv(two, 24, name="right")


@case(expand=("", ""), depthwise=("", "m"))
def a_returned_tensor_is_needed(g: Graph, x: Var):
    y = g.relu6(g.conv(x, 16, 1, name="expand", bias=True))
    z = g.times(g.depthwise(y, bias=True), g.gate(x, 16, 8, name="m"))
    return y, g.conv(z, 24, name="project")


@case(expand=("", "m"), depthwise=("", "m"))
def a_gated_depthwise_result_is_returned(g: Graph, x: Var):
    # The channels of an open block that the expansion leaves out must not spoil the result.
    y = g.conv(x, 30, 1, name="expand", bias=True)
    return g.times(g.depthwise(y, bias=True), g.gate(x, 30, 3, name="m"))


# What must not be used.


@case(first=("", ""), second=("own", ""))
def a_mask_from_the_own_result(g: Graph, x: Var):
    y = g.relu(g.conv(x, 16, name="first"))
    return g.conv(g.times(y, g.gate(y, 16, 8, name="own")), 24, name="second")


@case(expand=("", ""), depthwise=("", "late"), project=("late", ""))
def a_gate_that_reads_the_expansion(g: Graph, x: Var):
    y = g.relu6(g.conv(x, 16, 1, name="expand", bias=True))
    z = g.times(g.depthwise(y, bias=True), g.gate(y, 16, 8, name="late"))
    return g.conv(z, 24, name="project")


@case(expand=("", "m"), depthwise=("", "late"), project=("late", ""))
def a_gate_that_reads_a_gated_expansion(g: Graph, x: Var):
    y = g.times(g.relu6(g.conv(x, 16, 1, name="expand", bias=True)), g.gate(x, 16, 4, name="m"))
    z = g.times(g.relu6(g.depthwise(y, bias=True)), g.gate(y, 16, 8, name="late"))
    return g.conv(z, 24, name="project")


@case(first=("", ""), second=("", ""))
def a_sigmoid_that_is_never_zero(g: Graph, x: Var):
    pooled = g.emit(op.mean(x, axis=[2, 3], keepdims=True))
    scale = g.emit(op.sigmoid(g.conv(pooled, 16, 1)))
    return g.conv(g.times(g.conv(x, 16, name="first"), scale), 24, name="second")


@case(first=("", "s"), second=("s", ""))
def a_saliency(g: Graph, x: Var):
    pooled = g.emit(op.mean(x, axis=[2, 3], keepdims=True))
    saliency = g.emit(op.nn.relu(g.conv(pooled, 16, 1)), "s")
    return g.conv(g.times(g.relu(g.conv(x, 16, name="first")), saliency), 24, name="second")


@case(first=("", ""), second=("", ""))
def one_decision_for_the_whole_batch(g: Graph, x: Var):
    pooled = g.emit(op.mean(x, axis=[0, 2, 3], keepdims=True))
    mask = g.emit(op.nn.relu(g.conv(pooled, 16, 1)))
    product = g.emit(op.multiply(g.conv(x, 16, name="first"), mask))
    return g.conv(product, 24, name="second")


@case(first=("", ""), place=("", "m"), second=("", ""))
def a_gated_map_of_places(g: Graph, x: Var):
    place = g.times(g.conv(x, 1, name="place"), g.gate(x, 1, name="m"))
    product = g.emit(op.multiply(g.conv(x, 16, name="first"), place))
    return g.conv(product, 24, name="second")


@case(first=("", "a"), grouped=("", "b"), last=("b", ""))
def a_grouped_convolution_reads_everything(g: Graph, x: Var):
    y = g.times(g.conv(x, 16, name="first"), g.gate(x, 16, 2, name="a"))
    z = g.times(g.conv(y, 32, groups=4, name="grouped"), g.gate(y, 32, 8, name="b"))
    return g.conv(z, 24, name="last")


@case(grouped=("", "a"), last=("a", ""))
def a_grouped_convolution_of_groups_below_a_vector(g: Graph, x: Var):
    mask = g.gate(x, 16, 4, name="a")
    y = g.times(g.conv(x, 16, name="first"), mask)
    return g.conv(g.times(g.conv(y, 16, groups=8, name="grouped"), mask), 24, name="last")


@case(first=("", "a"), last=("", ""))
def a_transposed_convolution_to_few_channels(g: Graph, x: Var):
    y = g.times(g.relu(g.conv(x, 16, name="first")), g.gate(x, 16, 8, name="a"))
    up = g.emit(op.nn.conv2d_transpose(y, g.constant(16, 3, 5, 4), 3, 1, kernel_layout="IOHW"))
    up = g.prelu(g.emit(op.add(up, g.constant(1, 3, 1, 1))))
    return up, g.conv(up, 8, name="last")


@case(first=("", "a"), second=("a", "b"), last=("[all,b]", ""))
def a_transposed_convolution_and_a_resized_plane(g: Graph, x: Var):
    y = g.times(g.relu(g.conv(x, 16, name="first")), g.gate(x, 16, 8, name="a"))
    z = g.times(g.conv(y, 8, name="second", strides=2), g.gate(y, 8, 4, name="b"))
    weight = g.constant(8, 24, 3, 3)
    up = g.emit(op.nn.conv2d_transpose(z, weight, 2, 1, output_padding=1, kernel_layout="IOHW"))
    up = g.relu(g.emit(op.add(up, g.constant(1, 24, 1, 1))))
    resized = g.emit(op.image.resize2d(z, (6, 6), method="nearest_neighbor"))
    return g.conv(g.concat(up, resized), 24, name="last")


@case(first=("", "a"), last=("a", "b"), after=("b", ""))
def squeeze_and_excitation(g: Graph, x: Var):
    y = g.times(g.relu(g.conv(x, 24, name="first")), g.gate(x, 24, 8, name="a"))
    pooled = g.emit(op.mean(y, axis=[2, 3], keepdims=True))
    scale = g.emit(op.sigmoid(g.conv(pooled, 24, 1)))
    z = g.conv(g.emit(op.multiply(y, scale)), 16, 1, name="last")
    return g.conv(g.times(z, g.gate(x, 16, 4, name="b")), 8, name="after")


@case(first=("", "a"), last=("a", ""))
def squeeze_and_excitation_of_groups_below_a_vector(g: Graph, x: Var):
    y = g.times(g.relu(g.conv(x, 20, name="first")), g.gate(x, 20, 5, name="a"))
    pooled = g.emit(op.mean(y, axis=[2, 3], keepdims=True))
    scale = g.emit(op.sigmoid(g.conv(pooled, 20, 1)))
    return g.conv(g.emit(op.multiply(y, scale)), 16, 1, name="last")


@case(first=("", "a"), second=("", "b"), last=("b", ""))
def batch_norms_before_their_convolutions(g: Graph, x: Var):
    def norm(y: Var, channels: int) -> Var:
        y = g.emit(op.multiply(y, g.constant(1, channels, 1, 1)))
        return g.relu(g.emit(op.add(y, g.constant(1, channels, 1, 1))))

    y = g.times(g.conv(x, 16, name="first"), g.gate(x, 16, 8, name="a"))
    mask = g.gate(x, 16, 8, name="b")
    z = g.times(g.conv(norm(y, 16), 16, name="second"), mask)
    return g.conv(g.times(norm(z, 16), mask), 24, name="last")


@case(first=("", "a"), second=("", "b"), last=("b", ""))
def a_layer_normalisation_reads_everything(g: Graph, x: Var):
    y = g.times(g.relu(g.conv(x, 20, name="first")), g.gate(x, 20, 4, name="a"))
    affine = [g.constant(20), g.constant(20)]
    z = g.emit(op.nn.layer_norm(y, *affine, [1], epsilon=1e-5))
    return g.conv(g.times(g.conv(z, 16, name="second"), g.gate(y, 16, 8, name="b")), 8, name="last")


@case(first=("", "a"), second=("a", ""), third=("", "b"), last=("b", ""))
def a_group_normalisation_reads_everything(g: Graph, x: Var):
    y = g.times(g.conv(x, 24, name="first"), g.gate(x, 24, 4, name="a"))
    affine = [g.constant(24), g.constant(24)]
    z = g.conv(y, 24, name="second")
    z = g.emit(op.nn.group_norm(z, *affine, 6, 1, [2, 3], epsilon=1e-5))
    z = g.relu(g.add(g.prelu(z), y))
    return g.conv(g.times(g.conv(z, 16, name="third"), g.gate(z, 16, 8, name="b")), 8, name="last")


@case(first=("", "a"), second=("a", "b"), last=("", ""))
def slopes_for_each_channel(g: Graph, x: Var):
    y = g.times(g.prelu(g.conv(x, 16, name="first")), g.gate(x, 16, 8, name="a"))
    z = g.prelu(g.add(g.times(g.conv(y, 16, name="second"), g.gate(y, 16, 8, name="b")), x))
    return g.conv(z, 8, name="last")


@case(first=("", "a"))
def a_gated_result_is_returned(g: Graph, x: Var):
    y = g.conv(x, 21, name="first", bias=True, strides=2)
    return g.times(g.relu(y), g.gate(x, 21, 3, name="a"))


@case(first=("", "a"), second=("a", "b"))
def a_gate_that_reads_a_gated_tensor(g: Graph, x: Var):
    y = g.times(g.relu(g.conv(x, 24, name="first")), g.gate(x, 24, 8, name="a"))
    return g.times(g.conv(y, 24, name="second"), g.gate(y, 24, 8, name="b"))
