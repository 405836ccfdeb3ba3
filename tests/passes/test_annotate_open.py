# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I, relax as R

from tests.passes.graphs import CASES
from tests.passes.util import (
    Graph,
    assert_pass,
    assert_promises,
    assert_same_numbers,
    assert_unchanged,
    composites,
    sequence,
)
from tvm_dynprune.passes.annotate_open import AnnotateOpen
from tvm_dynprune.passes.composite import as_composite
from tvm_dynprune.passes.dataflow import Dataflow, op_name
from tvm_dynprune.passes.fuse_kernels import FuseKernels

X, MASK = R.Tensor((2, 3, 5, 5), "float32"), R.Tensor((2, 4, 1, 1), "float32")
YT, ZT = R.Tensor((2, 4, 5, 5), "float32"), R.Tensor((2, 6, 5, 5), "float32")
WT, W2T = R.Tensor((4, 3, 1, 1), "float32"), R.Tensor((6, 4, 1, 1), "float32")
SET = R.Tensor((2, 4), "bool")
W, W2 = (relax.const(np.ones(s, "float32")) for s in [(4, 3, 1, 1), (6, 4, 1, 1)])


def test_tells_each_kernel_which_channels_count():
    @I.ir_module
    class Before:
        @R.function
        def main(x: X, logits: MASK):
            with R.dataflow():
                mask = R.nn.relu(logits)
                conv1 = R.nn.conv2d(x, W)
                y = R.multiply(conv1, mask)
                conv2 = R.nn.conv2d(y, W2)
                R.output(conv2)
            return conv2

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def conv1(x: X, weight: WT, scale: MASK, open_out: SET) -> YT:
            R.func_attr(
                {
                    "Composite": "dynprune.conv2d",
                    "binary_scale": 0,
                    "epilogue": ["scale"],
                    "layer": "conv1",
                    "open_unit": 1,
                    "open_unit_in": 0,
                    "roles": ["x", "weight", "scale", "open_out"],
                }
            )
            with R.dataflow():
                y = R.nn.conv2d(x, weight)
                z = R.multiply(y, scale)
                R.output(z)
            return z

        @R.function(private=True)
        def conv2(x: YT, weight: W2T, open_in: SET) -> ZT:
            R.func_attr(
                {
                    "Composite": "dynprune.conv2d",
                    "epilogue": [],
                    "layer": "conv2",
                    "open_unit": 0,
                    "open_unit_in": 1,
                    "roles": ["x", "weight", "open_in"],
                }
            )
            with R.dataflow():
                y = R.nn.conv2d(x, weight)
                R.output(y)
            return y

        @R.function
        def main(x: X, logits: MASK) -> ZT:
            with R.dataflow():
                mask = R.nn.relu(logits)
                nonzero = R.not_equal(mask, R.const(0, "float32"))
                opened = R.reshape(nonzero, (2, 4))
                y = Expected.conv1(x, W, mask, opened)
                z = Expected.conv2(y, W2, opened)
                R.output(z)
            return z

    assert_pass(AnnotateOpen(), FuseKernels()(Before), Expected)


def open_sets(mod: tvm.IRModule) -> dict[str, tuple[str, str]]:
    """Layer → (open_in, open_out) as `graphs` writes them."""
    flow, functions = Dataflow(mod["main"]), dict(mod.functions_items())
    found = {}
    for binding in flow.bindings:
        composite = as_composite(functions, binding.value)
        if composite is not None:
            terms = [composite.arguments.get(role) for role in ("open_in", "open_out")]
            found[composite.layer] = tuple("" if t is None else _term(flow, t) for t in terms)
    return found


def _term(flow: Dataflow, var) -> str:
    value = flow.value(var)
    name = op_name(value)
    if name == "reshape":
        return flow.value(value.args[0]).args[0].name
    if name == "full":
        return "all"
    if name == "concat":
        return "[" + ",".join(_term(flow, part) for part in value.args[0].fields) + "]"
    sign = {"logical_or": "|", "logical_and": "&"}[name]
    return sign.join(sorted(_term(flow, part) for part in value.args))


@pytest.mark.parametrize("name", CASES)
def test_open_sets(name):
    before = FuseKernels()(Graph.build(CASES[name].body, (2, 16, 6, 6)))
    after = assert_promises(AnnotateOpen(), before)
    found = open_sets(after)
    assert {layer: found[layer] for layer in CASES[name].open_sets} == CASES[name].open_sets


@pytest.mark.parametrize("name", ["inverted_residual", "pooled_concatenation", "two_gates_meet"])
def test_what_a_function_computes_stays(name):
    before = FuseKernels()(Graph.build(CASES[name].body, (2, 16, 6, 6)))
    assert_same_numbers(before, AnnotateOpen()(before))


def test_the_unit_is_what_all_parts_share():
    def body(g, x):
        y = g.times(g.conv(x, 48, name="conv1"), g.gate(x, 48, 16))
        z = g.times(g.conv(x, 24, name="conv2"), g.gate(x, 24, 6))
        return g.emit(op.nn.max_pool2d(g.concat(y, z)), "pool")

    after = sequence(FuseKernels(), AnnotateOpen())(Graph.build(body, (1, 8, 4, 4)))
    units = {name: int(f.attrs["open_unit"]) for name, f in composites(after).items()}
    assert (units["conv1"], units["conv2"], units["pool"]) == (16, 6, 2)


def test_a_set_that_several_kernels_go_by_is_one_variable():
    before = Graph.build(CASES["inverted_residual"].body, (2, 16, 6, 6))
    main = sequence(FuseKernels(), AnnotateOpen())(before)["main"]
    values = [b.value for b in main.body.blocks[0].bindings]
    assert [op_name(value) for value in values].count("not_equal") == 1


def test_leaves_a_network_without_gates():
    def body(g, x):
        return g.relu(g.depthwise(g.relu(g.conv(x, 16, bias=True)), bias=True))

    before = sequence(FuseKernels(), AnnotateOpen())(Graph.build(body, (2, 16, 6, 6)))
    for function in composites(before).values():
        assert int(function.attrs["open_unit"]) == 0
        assert not {"open_in", "open_out"} & set(map(str, function.attrs["roles"]))
    assert_unchanged(AnnotateOpen(), before)


def test_needs_composites():
    assert_unchanged(AnnotateOpen(), Graph.build(CASES["layers_in_a_row"].body, (2, 16, 6, 6)))
