# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from tvm import relax
from tvm.relax import op

from tests.passes.util import Graph
from tvm_dynprune.passes.dataflow import Dataflow
from tvm_dynprune.passes.gates import Gate, find_gates

X, Y = (1, 8, 6, 6), (1, 16, 6, 6)
OWN_RESULT = "its multiplier is computed from the convolution's own result"


def gates_of(body, *shapes) -> list[Gate]:
    return find_gates(Dataflow(Graph.build(body, *shapes)["main"]))


def only_gate(body, *shapes) -> Gate:
    (gate,) = gates_of(body, *(shapes or [X]))
    return gate


@pytest.mark.parametrize("group_size", [1, 2, 8, 16])
def test_reads_group_size_and_threshold(group_size):
    gate = only_gate(
        lambda g, x: g.times(g.conv(x, 16, name="conv1"), g.gate(x, 16, group_size, 0.25))
    )
    assert gate.reason is None
    assert gate.layer == "conv1"
    assert gate.group_size == group_size
    assert gate.is_binary
    assert gate.threshold.value == 0.25


@pytest.mark.parametrize("swapped", [False, True])
def test_either_factor_may_be_the_mask(swapped):
    def body(g, x):
        y, mask = g.relu(g.conv(x, 16)), g.gate(x, 16)
        return g.emit(op.multiply(mask, y) if swapped else op.multiply(y, mask))

    gate = only_gate(body)
    assert gate.reason is None
    assert [int(size) for size in gate.mask.ty.shape] == [1, 16, 1, 1]


@pytest.mark.parametrize(
    "spread",
    [
        lambda g, m: g.emit(op.repeat(m, 4, axis=1)),
        lambda g, m: g.emit(op.reshape(g.emit(op.repeat(g.emit(op.reshape(m, (1, 4))), 4, 1)),
                                       (1, 16, 1, 1))),
        lambda g, m: g.emit(op.reshape(g.emit(op.tile(m, (1, 1, 4, 1))), (1, 16, 1, 1))),
        lambda g, m: g.emit(op.reshape(g.emit(op.broadcast_to(m, (1, 4, 2, 2))), (1, 16, 1, 1))),
    ],
)  # fmt: skip
def test_reads_the_group_size_from_however_the_groups_were_spread(spread):
    gate = only_gate(lambda g, x: g.times(g.conv(x, 16), spread(g, g.gate(x, 4))))
    assert gate.group_size == 4


def test_interleaved_groups_have_no_size():
    # Channel c belongs to group c % 4: neighbours do not open together.
    gate = only_gate(
        lambda g, x: g.times(g.conv(x, 16), g.emit(op.tile(g.gate(x, 4), (1, 4, 1, 1))))
    )
    assert gate.reason is None
    assert gate.group_size == 1


def test_a_scaled_gate_is_not_binary():
    def body(g, x):
        saliency = g.relu(g.conv(g.emit(op.mean(x, axis=[2, 3], keepdims=True)), 16, 1))
        return g.times(g.conv(x, 16), saliency)

    gate = only_gate(body)
    assert gate.reason is None
    assert not gate.is_binary
    assert gate.threshold is None


@pytest.mark.parametrize("swapped", [False, True])
def test_a_scale_that_is_never_zero_leaves_the_group_size(swapped):
    def body(g, x):
        logits = g.conv(g.emit(op.mean(x, axis=[2, 3], keepdims=True)), 16, 1)
        scale = g.emit(op.multiply(g.emit(op.sigmoid(logits)), relax.const(2.0, "float32")))
        mask = g.gate(x, 16, 4, 0.25)
        return g.times(g.conv(x, 16), g.times(*((scale, mask) if swapped else (mask, scale))))

    gate = only_gate(body)
    assert gate.reason is None
    assert (gate.group_size, gate.is_binary, gate.threshold.value) == (4, False, 0.25)


def test_a_scale_that_may_be_zero_decides_channel_by_channel():
    def body(g, x):
        saliency = g.relu(g.conv(g.emit(op.mean(x, axis=[2, 3], keepdims=True)), 16, 1))
        return g.times(g.conv(x, 16), g.times(g.gate(x, 16, 4), saliency))

    assert only_gate(body).group_size == 1


def test_a_gate_may_come_from_elsewhere():
    gate = only_gate(lambda g, x, other: g.times(g.conv(x, 16), g.gate(other, 16)), X, (1, 4, 3, 3))
    assert gate.reason is None


@pytest.mark.parametrize(
    "between",
    [
        lambda g, y: g.relu(y),
        lambda g, y: g.relu6(g.emit(op.add(y, g.constant(1, 16, 1, 1)))),
        lambda g, y: g.emit(op.nn.max_pool2d(y, (2, 2), (2, 2))),
        lambda g, y: g.depthwise(y, "conv1"),
    ],
)
def test_finds_the_convolution_behind_activation_bias_and_pooling(between):
    gate = only_gate(lambda g, x: g.times(between(g, g.conv(x, 16, name="conv1")), g.gate(x, 16)))
    assert gate.reason is None
    assert gate.layer.startswith("conv1")


def squeeze_and_excitation(g, x):
    y = g.relu(g.conv(x, 16, name="conv1"))
    pooled = g.emit(op.mean(y, axis=[2, 3], keepdims=True))
    squeezed = g.relu(g.conv(pooled, 4, 1, name="fc1"))
    excited = g.emit(op.sigmoid(g.conv(squeezed, 16, 1, name="fc2")))
    return g.times(y, excited)


def hard_squeeze_and_excitation(g, x):
    """As MobileNetV3 has it; its factor may well be 0."""
    y = g.relu(g.conv(x, 16, name="conv1"))
    pooled = g.emit(op.mean(y, axis=[2, 3], keepdims=True))
    lifted = g.emit(op.add(g.conv(pooled, 16, 1), relax.const(3.0, "float32")))
    return g.times(y, g.emit(op.multiply(g.relu6(lifted), relax.const(1 / 6, "float32"))))


@pytest.mark.parametrize("body", [squeeze_and_excitation, hard_squeeze_and_excitation])
def test_squeeze_and_excitation_is_no_gate(body):
    assert gates_of(body, X) == []


def test_a_thresholded_mask_of_the_own_result_is_no_gate():
    def body(g, x):
        y = g.relu(g.conv(x, 16, name="conv1"))
        return g.times(y, g.gate(y, 16))

    gate = only_gate(body)
    assert (gate.layer, gate.reason) == ("conv1", OWN_RESULT)


@pytest.mark.parametrize(
    "positive",
    [
        lambda g, z: g.emit(op.sigmoid(z)),
        lambda g, z: g.emit(
            relax.TupleGetItem(g.emit(op.split(g.emit(op.nn.softmax(g.concat(z, z), 1)), 2, 1)), 0)
        ),
        lambda g, z: g.emit(op.exp(z)),
        lambda g, z: g.emit(op.clip(z, 0.1, 1.0)),
        lambda g, z: g.emit(op.add(g.emit(op.sigmoid(z)), relax.const(1.0, "float32"))),
        lambda g, z: g.emit(op.maximum(z, relax.const(0.5, "float32"))),
        lambda g, z: g.emit(op.reshape(g.emit(op.sigmoid(z)), (1, 16, 1, 1))),
    ],
)
def test_a_multiplier_that_is_never_zero_is_no_gate(positive):
    def body(g, x):
        logits = g.conv(g.emit(op.mean(x, axis=[2, 3], keepdims=True)), 16, 1)
        return g.times(g.conv(x, 16), positive(g, logits))

    assert only_gate(body).reason == "its multiplier can never be 0, so it closes nothing"


def test_an_ungated_result_that_others_read_cannot_be_skipped():
    def body(g, x):
        y = g.conv(x, 16, name="conv1")
        other = g.emit(op.nn.relu(y), "other")
        return g.times(y, g.gate(x, 16), "gated"), other

    gate = only_gate(body)
    assert gate.layer == "conv1"
    assert "is also read by gated, other" in gate.reason


def test_a_mask_on_the_networks_input_closes_no_convolution():
    gate = only_gate(lambda g, x: g.times(x, g.gate(x, 8)))
    assert gate.reason == "what it multiplies does not come from a convolution"


@pytest.mark.parametrize(
    "shape", [(1, 1, 6, 6), (1, 16, 6, 6), (1, 1, 1, 1), (1, 16, 6, 1), (16, 1, 1)]
)
def test_other_multiplications_do_not_look_like_gates(shape):
    assert gates_of(lambda g, x, m: g.times(g.conv(x, 16), m), X, shape) == []


def test_a_constant_factor_is_no_gate():
    def body(g, x):
        return g.emit(op.multiply(g.conv(x, 16), relax.const(np.zeros((1, 16, 1, 1), "float32"))))

    assert gates_of(body, X) == []


def test_gates_come_in_the_order_of_the_data_flow():
    def body(g, x):
        y = g.times(g.conv(x, 16, name="conv1"), g.gate(x, 16, threshold=1.0))
        return g.times(g.conv(y, 8, name="conv2"), g.gate(y, 8, threshold=2.0))

    gates = gates_of(body, X)
    assert [(gate.layer, gate.threshold.value) for gate in gates] == [("conv1", 1), ("conv2", 2)]


def test_the_threshold_of_another_gate_is_not_taken():
    def body(g, x):
        y = g.times(g.conv(x, 16), g.gate(x, 16, threshold=7.0))
        saliency = g.relu(g.conv(g.emit(op.mean(y, axis=[2, 3], keepdims=True)), 16, 1))
        return g.times(g.conv(y, 16), saliency)

    assert gates_of(body, X)[1].threshold is None
