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
    ops,
    random_inputs,
    run,
)
from tvm_dynprune.passes.expose_gates import ExposeGates, GateInfo, gate_infos

X, LOGITS = R.Tensor((2, 3, 5, 5), "float32"), R.Tensor((2, 4, 1, 1), "float32")
W = relax.const(np.ones((4, 3, 3, 3), "float32"))
SHAPE = (2, 8, 6, 6)


def test_threshold_becomes_an_input_and_the_decision_an_output():
    @I.ir_module
    class Before:
        @R.function
        def main(x: X, logits: LOGITS):
            with R.dataflow():
                conv1 = R.nn.conv2d(x, W)
                opened = R.greater(logits, R.const(0.5, "float32"))
                mask = R.astype(opened, "float32")
                z = R.multiply(conv1, mask)
                R.output(z)
            return z

    @I.ir_module
    class Expected:
        @R.function
        def main(x: X, logits: LOGITS, thresholds: R.Tensor((1,), "float32")):
            R.func_attr(
                {
                    "gates": '[{"layer": "conv1", "channels": 4, "group_size": 1, '
                    '"threshold": 0.5, "threshold_index": 0}]',
                    "num_outputs": 1,
                }
            )
            with R.dataflow():
                conv1 = R.nn.conv2d(x, W)
                threshold = R.strided_slice(thresholds, [0], [0], [1])
                opened = R.greater(logits, threshold)
                mask = R.astype(opened, "float32")
                z = R.multiply(conv1, mask)
                nonzero = R.not_equal(mask, R.const(0, "float32"))
                decided = R.reshape(nonzero, (2, 4))
                result = (z, decided)
                R.output(result)
            return result

    assert_pass(ExposeGates(), Before, Expected)


def two_gates(g, x):
    y = g.times(g.relu(g.conv(x, 16, name="conv1")), g.gate(x, 16, 4, threshold=0.1))
    return g.times(g.conv(y, 8, name="conv2"), g.gate(y, 8, threshold=-0.2))


def test_each_gate_has_its_threshold_and_its_line_in_the_manifest():
    before = Graph.build(two_gates, SHAPE)
    after = assert_promises(ExposeGates(), before)
    assert gate_infos(after["main"]) == [
        GateInfo("conv1", 16, 4, pytest.approx(0.1), 0),
        GateInfo("conv2", 8, 1, pytest.approx(-0.2), 1),
    ]
    assert_same_numbers(before, after, np.array([0.1, -0.2], "float32"))


@pytest.mark.parametrize(("threshold", "fraction"), [(-1e9, 1), (1e9, 0)])
def test_the_thresholds_decide(threshold, fraction):
    after = ExposeGates()(Graph.build(two_gates, SHAPE))
    inputs = random_inputs(after)[:1]
    _, first, second = run(after, *inputs, np.array([threshold, 0], "float32"))
    assert (first == bool(fraction)).all()
    _, _, second = run(after, *inputs, np.array([0, threshold], "float32"))
    assert (second == bool(fraction)).all()


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_a_threshold_may_have_any_rank(rank):
    def body(g, x):
        logits = g.conv(g.emit(op.mean(x, axis=[2, 3], keepdims=True)), 16, 1)
        threshold = relax.const(np.full((1,) * rank, 0.1, "float32"))
        mask = g.emit(op.astype(g.emit(op.greater_equal(logits, threshold)), "float32"))
        return g.times(g.conv(x, 16), mask)

    before = Graph.build(body, SHAPE)
    after = assert_promises(ExposeGates(), before)
    assert_same_numbers(before, after, np.array([0.1], "float32"))


def test_gates_that_share_a_comparison_share_its_threshold():
    def body(g, x):
        mask = g.gate(x, 16)
        return g.times(g.conv(x, 16, name="a"), mask), g.times(g.conv(x, 16, name="b"), mask)

    after = assert_promises(ExposeGates(), Graph.build(body, SHAPE))
    assert [info.threshold_index for info in gate_infos(after["main"])] == [0, 0]
    assert [int(size) for size in after["main"].params[-1].ty.shape] == [1]
    assert int(after["main"].attrs["num_outputs"]) == 2


def test_a_gate_without_a_comparison_has_no_threshold():
    def body(g, x):
        pooled = g.emit(op.mean(x, axis=[2, 3], keepdims=True))
        return g.times(g.conv(x, 16), g.relu(g.conv(pooled, 16, 1)))

    after = assert_promises(ExposeGates(), Graph.build(body, SHAPE))
    (info,) = gate_infos(after["main"])
    assert (info.threshold, info.threshold_index) == (None, None)
    assert len(after["main"].params) == 1


def test_an_unusable_gate_is_left_alone():
    def body(g, x):
        y = g.conv(x, 16)
        return g.times(y, g.gate(y, 16))

    before = Graph.build(body, SHAPE)
    after = assert_promises(ExposeGates(), before)
    assert gate_infos(after["main"]) == []
    assert ops(after) == ops(before)
    assert len(after["main"].params) == 1


def test_a_function_that_was_not_exposed_has_no_gates():
    assert gate_infos(Graph.build(two_gates, SHAPE)["main"]) == []
