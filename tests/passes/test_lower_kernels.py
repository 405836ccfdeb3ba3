# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import tvm
from tvm import relax, topi
from tvm.relax import op

from tests.kernels.util import FEW_REGISTERS, quick_host
from tests.linked import virtual_machine
from tests.pairwise import pairwise
from tests.passes.graphs import CASES
from tests.passes.util import (
    Graph,
    assert_promises,
    assert_unchanged,
    results_of_both,
    run,
    sequence,
)
from tvm_dynprune.errors import NotLoweredError
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.annotate_open import AnnotateOpen
from tvm_dynprune.passes.choose_algorithm import ChooseAlgorithm
from tvm_dynprune.passes.choose_lowering import ChooseLowering
from tvm_dynprune.passes.conv2d_spec import KernelTarget
from tvm_dynprune.passes.fuse_kernels import FuseKernels
from tvm_dynprune.passes.lower_kernels import LowerKernels, check_lowered
from tvm_dynprune.soc import Cost, load_soc

LANES, REGISTERS, MANY = 8, FEW_REGISTERS, 32
COST = Cost(transform=2.0, weight=8.0, cached_weight=1.0, weight_transform=2.0, gather=20.0)
NO_CACHE = 0  # KiB
LOWERINGS = ("dense", "if", "indexed")


def chosen(graph: tvm.IRModule, lowering: str, algorithm: str = "direct") -> tvm.IRModule:
    """The graph with its kernels fused and annotated; `algorithm` for those that it can compute."""
    choose = ChooseAlgorithm(LANES, COST, NO_CACHE)
    mod = sequence(FuseKernels(), AnnotateOpen(), ChooseLowering(lowering), choose)(graph)
    functions = dict(mod.functions_items())
    for global_var, func in functions.items():
        if "costs" in (func.attrs or {}):
            able = algorithm in json.loads(str(func.attrs["costs"]))
            functions[global_var] = func.with_attr("algorithm", algorithm if able else "direct")
    return tvm.IRModule(functions, attrs=mod.attrs)


def lowered(
    graph: tvm.IRModule, lowering: str, algorithm: str = "direct", registers: int = REGISTERS
) -> tvm.IRModule:
    return LowerKernels(KernelTarget(LANES, registers))(chosen(graph, lowering, algorithm))


def machine(mod: tvm.IRModule) -> relax.VirtualMachine:
    return virtual_machine(pipeline.build(mod, quick_host()))


def results(network: relax.VirtualMachine, x: np.ndarray) -> list[np.ndarray]:
    return results_of_both(network, [x])


def random_x(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 16, 6, 6)).astype("float32")


# A single sample has code of its own where a mask of zeros and ones is settled by the lists.
SINGLE = (
    "layers_in_a_row",
    "residual_block_on_a_gated_stem",
    "inverted_residual_of_small_groups",
    "squeeze_and_excitation",
    "squeeze_and_excitation_of_groups_below_a_vector",
)


@pytest.mark.parametrize(
    ("name", "batch"), [*((name, 3) for name in CASES), *((name, 1) for name in SINGLE)]
)
def test_lowered_kernels_compute_what_the_network_says(name, batch):
    graph, x = Graph.build(CASES[name].body, (batch, 16, 6, 6)), random_x(batch)
    expected = run(graph, x)
    registers = MANY if batch == 1 else REGISTERS
    dense = machine(lowered(graph, "dense", registers=registers))
    for lowering in LOWERINGS:
        one = lowered(graph, lowering, registers=registers)
        network = dense if lowering == "dense" else machine(one)
        results(network, -x)  # leaves nothing that matters to the next call
        results(dense, np.full_like(x, np.nan))  # leaves NaN in the memory that is used next
        for got, wanted in zip(results(network, x), expected, strict=True):
            assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max(), lowering


@pytest.mark.parametrize(
    *pairwise(
        algorithm=["winograd_2", "winograd_4"],
        name=list(SINGLE[:2]),
        batch=[1, 3],
        lowering=list(LOWERINGS),
    )
)
def test_winograd_computes_what_the_network_says(algorithm, name, batch, lowering):
    graph, x = Graph.build(CASES[name].body, (batch, 16, 6, 6)), random_x(batch)
    mod = lowered(graph, lowering, algorithm)
    assert any("winograd_input" in kernel for kernel in called(mod))
    for got, wanted in zip(results(machine(mod), x), run(graph, x), strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "algorithm",
    ["direct_in", "winograd_2_in", "winograd_4_in", "direct", "winograd_2", "winograd_4"],
)
def test_groups_below_a_vector_compute_what_the_network_says(batch, algorithm):
    def body(g, x):
        y = g.times(g.relu(g.conv(x, 24, name="first", bias=True)), g.gate(x, 24, 3, name="a"))
        y = g.times(g.relu(g.conv(y, 16, name="second")), g.gate(y, 16, 1, name="b"))
        return g.conv(y, 8, name="third")

    graph, x = Graph.build(body, (batch, 16, 6, 6)), random_x(batch)
    mod = lowered(graph, "indexed", algorithm)
    for got, wanted in zip(results(machine(mod), x), run(graph, x), strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(("kernel", "padding"), [(7, 3), (5, 2), (5, 1)])
@pytest.mark.parametrize("shape", [(1, 3, 12, 12), (2, 1, 13, 11)])
def test_a_strided_first_layer_is_computed_over_squares(kernel, padding, shape):
    def body(g, x):
        y = g.conv(x, 24, kernel, "stem", bias=True, strides=(2, 2), padding=padding)
        return g.relu(y)

    def chosen_lanes(mod):
        choose = ChooseAlgorithm(16, COST, NO_CACHE)
        return sequence(FuseKernels(), AnnotateOpen(), ChooseLowering("dense"), choose)(mod)

    graph = Graph.build(body, shape)
    functions = dict(chosen_lanes(graph).functions_items())
    for global_var, func in functions.items():
        if "costs" in (func.attrs or {}):
            functions[global_var] = func.with_attr("algorithm", "winograd_strided")
    mod = LowerKernels(KernelTarget(16, 16))(tvm.IRModule(functions))
    assert called(mod) == [
        "space_to_depth", "winograd_input_stem", "conv2d_stem", "unblock_channels"
    ]  # fmt: skip
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    (got,), (wanted,) = results(machine(mod), x), run(graph, x)
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def called(mod: tvm.IRModule) -> list[str]:
    """The kernels that ``main`` calls, in order; "if" for a conditional."""
    found = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.If):
                found.append("if")
            elif isinstance(value, relax.Call) and value.op.name == "relax.call_tir":
                found.append(value.args[0].name_hint)
    return found


@pytest.mark.parametrize(
    ("lowering", "kernels"),
    [
        ("dense", ["conv2d_first", "conv2d_second"]),
        ("indexed", ["open_list", "conv2d_first", "conv2d_second"]),
        ("if", ["any_open", "conv2d_closed", "if", "if", "conv2d_second"]),
    ],
)
def test_kernels_of_each_lowering(lowering, kernels):
    graph = Graph.build(CASES["activation_inside_the_mask"].body, (1, 16, 6, 6))
    after = assert_promises(LowerKernels(KernelTarget(LANES, REGISTERS)), chosen(graph, lowering))
    gate = ["block_channels", "global_average", "conv2d_gate"]
    assert called(after) == [*gate, *kernels, "unblock_channels"]


def three_parts(g: Graph, x, *, also_added: bool = False):
    """A concatenation of a gated part, a pooled part, and a part of another gate."""
    left = g.times(g.conv(x, 16, name="left"), g.gate(x, 16, 8, name="a"))
    pooled = g.emit(op.nn.max_pool2d(x := g.conv(x, 16, 1), (3, 3), (1, 1), (1, 1)), "pool")
    right = g.times(g.conv(x, 24, 1, name="right"), g.gate(x, 24, 8, name="b"))
    last = g.conv(g.concat(left, pooled, right), 16, name="last")
    return g.add(last, pooled) if also_added else last


@pytest.mark.parametrize(("algorithm", "batch"), [("direct", 1), ("direct", 3), ("winograd_4", 3)])
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_concatenation_is_computed_in_place(lowering, batch, algorithm):
    graph, x = Graph.build(three_parts, (batch, 16, 6, 6)), random_x(batch)
    mod = lowered(graph, lowering, algorithm)
    assert "R.concat((conv2d" not in mod["main"].script()
    network = machine(mod)
    results(network, np.full_like(x, np.nan))  # leaves NaN in the memory that is used next
    for got, wanted in zip(results(network, x), run(graph, x), strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_concatenation_is_pooled_by_those_who_compute_its_parts(batch):
    def body(g, x):
        y = three_parts(g, x)
        parts = g.conv(y, 16, 1, name="one"), g.conv(y, 24, name="other")
        return g.times(g.conv(both := g.concat(*parts), 16), g.gate(both, 16, 8, name="c"))

    graph, x = Graph.build(body, (batch, 16, 6, 6)), random_x(batch)
    mod = lowered(graph, "indexed")
    names = called(mod)
    assert "global_average" not in "".join(names[names.index("conv2d_one") :])
    for got, wanted in zip(results(machine(mod), x), run(graph, x), strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def residual_blocks(g: Graph, x, *, is_read_later: bool = False):
    """Three residual blocks, both of whose convolutions are gated."""
    first = y = g.relu(g.conv(x, 32, name="stem"))
    for block in range(3):
        h = g.times(g.relu(g.conv(y, 32)), g.gate(y, 32, 8, name=f"a{block}"))
        z = g.times(g.conv(h, 32), g.gate(h, 32, 8, name=f"b{block}"))
        y = g.relu(g.add(z, y))
    return g.conv(g.add(y, first) if is_read_later else y, 16, name="last")


@pytest.mark.parametrize(
    *pairwise(
        batch=[1, 3],
        algorithm=["direct", "winograd_4"],
        is_read_later__in_place=[(False, 3), (True, 2)],
    )
)
def test_residual_blocks_write_over_their_input(batch, algorithm, is_read_later, in_place):
    def body(g, x):
        return residual_blocks(g, x, is_read_later=is_read_later)

    graph, x = Graph.build(body, (batch, 16, 6, 6)), random_x(batch)
    mod = lowered(graph, "indexed", algorithm)
    assert mod["main"].script().count("R.call_tir_inplace(") == in_place
    network = machine(mod)
    for got, wanted in zip(results(network, x), run(graph, x), strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_part_that_others_read_is_concatenated():
    def body(g, x):
        return three_parts(g, x, also_added=True)

    graph, x = Graph.build(body, (1, 16, 6, 6)), random_x(1)
    mod = lowered(graph, "indexed")
    assert "R.concat((conv2d" in mod["main"].script()
    for got, wanted in zip(results(machine(mod), x), run(graph, x), strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("algorithm", ["direct", "winograd_4"])
@pytest.mark.parametrize(("lowering", "poolings"), [("indexed", 1), ("dense", 1), ("if", 2)])
def test_a_kernel_pools_what_it_computes(lowering, poolings, algorithm):
    graph = Graph.build(CASES["layers_in_a_row"].body, (1, 16, 6, 6))
    names = called(lowered(graph, lowering, algorithm))
    # That of the image stays, and that of a layer whose groups are computed one by one.
    assert len([name for name in names if name.startswith("global_average")]) == poolings


def widened(g: Graph, x, *, also_added: bool = False):
    """An inverted residual's first two layers on a gated map, and a pooled stem's."""
    gated = g.gate(x, 64, 8, name="a")
    wide = g.times(g.relu(g.conv(x, 64, 1, name="wide", bias=True)), gated)
    y = g.times(g.relu(g.depthwise(wide, bias=True)), gated)
    if also_added:
        y = g.add(y, wide)
    y = g.relu(g.conv(y, 64, name="stem"))
    return g.conv(g.emit(op.nn.max_pool2d(y, (3, 3), (2, 2), (1, 1))), 8, 1, name="last")


@pytest.mark.parametrize(
    ("also_added", "lowering", "together"),
    [(False, "dense", 2), (False, "indexed", 2), (False, "if", 0), (True, "indexed", 1)],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_large_map_that_a_window_reads_is_never_in_memory(also_added, lowering, together, batch):
    shape = (batch, 16, 50, 48)
    graph = Graph.build(lambda g, x: widened(g, x, also_added=also_added), shape)
    x = np.random.default_rng(batch).standard_normal(shape).astype("float32")
    mod = lowered(graph, lowering)
    kernels = called(mod)
    assert sum("_depthwise_conv2d" in k or "_max_pool2d" in k for k in kernels) == together
    for got, wanted in zip(results(machine(mod), x), run(graph, x), strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_deep_network_of_elementwise_steps_is_no_deep_recursion():
    def body(g, x):
        for _ in range(400):
            x = g.emit(op.sqrt(g.emit(op.abs(x))))
        return g.conv(x, 8)

    graph = Graph.build(body, (1, 16, 6, 6))
    assert called(lowered(graph, "dense")) == ["block_channels", "conv2d_conv", "unblock_channels"]


def test_tensors_stay_blocked_between_kernels():
    graph = Graph.build(CASES["inverted_residual"].body, (1, 16, 6, 6))
    names = called(lowered(graph, "indexed"))
    assert (names.count("block_channels"), names.count("unblock_channels")) == (1, 1)


@pytest.mark.parametrize("is_gated", [False, True])
def test_squeeze_and_excitation_scales_a_blocked_tensor(is_gated):
    def body(g, x):
        y = g.relu(g.conv(x, 20))
        y = g.times(y, g.gate(x, 20, 4)) if is_gated else y
        pooled = g.emit(op.mean(y, axis=[2, 3], keepdims=True))
        scale = g.emit(op.sigmoid(g.conv(pooled, 20, 1, bias=True)))
        return g.conv(g.times(y, scale), 8)

    graph, x = Graph.build(body, (3, 16, 6, 6)), random_x(3)
    mod = lowered(graph, "indexed")
    names = called(mod)
    assert names.count("block_channels") == names.count("unblock_channels") == 1
    for got, wanted in zip(results(machine(mod), x), run(graph, x), strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_set_is_turned_into_lists_once():
    graph = Graph.build(CASES["inverted_residual"].body, (1, 16, 6, 6))
    assert called(lowered(graph, "indexed")).count("open_list") == 1


def test_one_conditional_for_each_channel_group():
    def body(g, x):
        return g.times(g.conv(x, 64), g.gate(x, 64, 16))

    assert called(lowered(Graph.build(body, (1, 16, 6, 6)), "if")).count("if") == 4


def test_results_keep_their_names_and_shapes():
    graph = Graph.build(CASES["two_readers_need_what_either_needs"].body, (3, 16, 6, 6))
    after = lowered(graph, "indexed")
    tvm.ir.assert_structural_equal(after["main"].ret_ty, graph["main"].ret_ty)
    tvm.ir.assert_structural_equal(after["main"].params[0].ty, graph["main"].params[0].ty)


def test_function_and_module_attributes_stay():
    graph = Graph.build(CASES["a_saliency"].body, (1, 16, 6, 6)).with_attr("note", 1)
    main = graph.get_global_var("main")
    graph.update_func(main, graph["main"].with_attr("gates", "[]"))
    after = lowered(graph, "indexed")
    assert after.attrs["note"] == 1
    assert after["main"].attrs["gates"] == "[]"


def test_leaves_a_module_without_composites():
    graph = Graph.build(lambda g, x: g.emit(op.nn.gelu(x)), (1, 16, 6, 6))
    assert_unchanged(LowerKernels(KernelTarget(LANES, REGISTERS)), graph)


def test_kernels_that_an_importer_made_are_called_as_they_were():
    def body(g, x):
        edges = g.builder.emit_te(topi.nn.mirror_pad, g.conv(x, 16), (0, 0, 1, 1), (0, 0, 1, 1))
        return g.conv(edges, 8, padding=0)

    graph, x = Graph.build(body, (1, 16, 6, 6)), random_x(1)
    mod = lowered(graph, "indexed")
    assert "mirror_pad" in called(mod)
    for got, wanted in zip(results(machine(mod), x), run(graph, x), strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_kernel_that_was_left_is_an_error():
    graph = Graph.build(CASES["a_saliency"].body, (1, 16, 6, 6))
    check_lowered(lowered(graph, "indexed"))
    with pytest.raises(NotLoweredError, match=r"not lowered: .*first.*please report"):
        check_lowered(chosen(graph, "indexed"))


def test_the_pipeline_checks_that_nothing_was_left(monkeypatch):
    graph = pipeline.annotate(Graph.build(CASES["a_saliency"].body, (1, 16, 6, 6)))
    monkeypatch.setattr(pipeline, "LowerKernels", lambda *_, **__: tvm.transform.Sequential([]))
    with pytest.raises(NotLoweredError):
        pipeline.lower(graph, load_soc("host"))
