# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tvm
from tvm import relax

from tests.kernels.util import quick_host
from tests.linked import virtual_machine
from tests.passes.graphs import CASES
from tests.passes.util import Graph, assert_promises, assert_unchanged
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.merge_small_kernels import MergeSmallKernels

PASSES = pipeline.build_passes()
PLACE = [pass_.info.name for pass_ in PASSES].index("MergeSmallKernels")


def before_merging(graph: tvm.IRModule, lowering: str = "indexed") -> tvm.IRModule:
    """The module as the pass gets it."""
    soc = quick_host()
    with soc.tvm_target():
        return tvm.transform.Sequential(PASSES[:PLACE])(pipeline.optimize(graph, soc, lowering))


def results(mod: tvm.IRModule, arguments: list[np.ndarray]) -> list[np.ndarray]:
    """What the module computes; the passes that come after this one are run on it."""
    target = quick_host().tvm_target()
    with target:
        mod = tvm.transform.Sequential(PASSES[PLACE + 1 :])(mod)
        built = relax.build(mod, target, relax_pipeline=tvm.transform.Sequential([]))
    machine = virtual_machine(built)
    return [r.numpy() for r in machine["main"](*map(tvm.runtime.tensor, arguments))]


def case(name: str, batch: int = 1) -> tvm.IRModule:
    return Graph.build(CASES[name].body, (batch, 16, 6, 6))


def called(mod: tvm.IRModule) -> list[str]:
    """The kernels that ``main`` calls, in order."""
    bindings = [b for block in mod["main"].body.blocks for b in block.bindings]
    calls = [b.value for b in bindings if isinstance(b.value, relax.Call)]
    return [c.args[0].name_hint for c in calls if c.op.name == "relax.call_tir"]


def test_a_gate_is_one_call():
    after = assert_promises(MergeSmallKernels(), before_merging(case("layers_in_a_row")))
    first, layer, second, *layers = called(after)
    assert first.startswith("merged_block_channels")
    assert second.startswith("merged_conv2d")
    assert layer.startswith("conv2d_first")
    assert [name.rstrip("0123456789") for name in layers] == [
        "conv2d_second", "conv2d_result", "unblock_channels"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["layers_in_a_row", "inverted_residual", "poolings"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_numbers_stay(name, batch):
    graph = case(name, batch)
    x = np.random.default_rng(0).standard_normal((batch, 16, 6, 6)).astype("float32")
    before = before_merging(graph)
    arguments = [x] + [np.zeros(p.ty.shape[0].value, "float32") for p in before["main"].params[1:]]
    after = MergeSmallKernels()(before)
    assert len(called(after)) < len(called(before))
    for got, wanted in zip(results(after, arguments), results(before, arguments), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_kernels_run_on_one_thread():
    after = MergeSmallKernels()(before_merging(case("layers_in_a_row")))
    merged = [f for gv, f in after.functions_items() if gv.name_hint.startswith("merged")]
    assert merged
    assert all("T.parallel" not in function.script() for function in merged)


def test_leaves_large_tensors():
    graph = Graph.build(CASES["layers_in_a_row"].body, (1, 16, 96, 96))
    names = called(MergeSmallKernels()(before_merging(graph)))
    assert [n for n in names if n.startswith("global_average")]
    assert any(n.startswith("merged_conv2d_gate") for n in names)


def test_leaves_a_network_without_gates():
    def body(g, x):
        return g.conv(g.relu(g.conv(x, 16)), 16)

    assert_unchanged(MergeSmallKernels(), before_merging(Graph.build(body, (1, 16, 6, 6))))
