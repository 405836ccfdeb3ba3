# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.kernels.util import quick_host
from tests.linked import virtual_machine
from tests.passes.graphs import CASES
from tests.passes.util import Graph, assert_promises, composites, ops, run
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.instruments import CheckWellFormed, Timer

SHAPE = (1, 16, 6, 6)


def graph() -> tvm.IRModule:
    return Graph.build(CASES["layers_in_a_row"].body, SHAPE)


def machine(mod: tvm.IRModule) -> relax.VirtualMachine:
    return virtual_machine(pipeline.build(mod, quick_host()))


def test_annotate_keeps_its_input_and_runs_twice():
    annotate = tvm.transform.module_pass(
        lambda mod, _: pipeline.annotate(mod), opt_level=0, name="annotate"
    )
    after = assert_promises(annotate, graph())
    assert {gv.name_hint for gv in after.get_global_vars()} >= {"main", "dense"}
    assert "dense" not in {
        gv.name_hint for gv in pipeline.annotate(graph(), twin=False).get_global_vars()
    }


@pytest.mark.parametrize("lowering", ["auto", "dense", "if", "indexed"])
def test_optimize_and_build_make_network_and_twin(lowering):
    before, x = graph(), np.random.default_rng(0).standard_normal(SHAPE).astype("float32")
    network = machine(pipeline.optimize(before, quick_host(), lowering))
    thresholds = np.zeros(2, "float32")
    out, opened = network["main"](*map(tvm.runtime.tensor, (x, thresholds)))
    (expected,) = run(before, x)
    assert np.abs(out.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    assert opened.numpy().shape == (1, 48 + 32)
    everything = np.full(2, -1e9, "float32")
    all_open, *_ = network["main"](*map(tvm.runtime.tensor, (x, everything)))
    dense = network["dense"](tvm.runtime.tensor(x))
    dense = dense if hasattr(dense, "numpy") else dense[0]
    np.testing.assert_allclose(all_open.numpy(), dense.numpy(), rtol=1e-4, atol=1e-4)


def test_the_vm_allocates_results_and_calls_one_kernel():
    soc = quick_host()
    text = pipeline.build(pipeline.optimize(graph(), soc, "indexed"), soc).as_text()
    calls = {
        name: re.findall(r"call  (\S+)", body)
        for name, body in re.findall(r"@(\S+):\n(.*?)\n\n", text, re.DOTALL)
    }
    assert set(calls) == {"main", "main_by_kernel", "dense", "dense_by_kernel"}
    for name, results in (("main", 2), ("dense", 1)):
        kernels = [call for call in calls[name] if not call.startswith("vm.builtin")]
        assert kernels == [f"{name}_kernels"]
        assert calls[name].count("vm.builtin.alloc_tensor") == results
        assert calls[name].count("vm.builtin.make_tuple") == 1
        assert not {"vm.builtin.tuple_getitem", "vm.builtin.copy"} & set(calls[name])
    assert len([call for call in calls["main_by_kernel"] if call.startswith("conv2d")]) == 3


def test_calibration_makes_a_layer_dense():
    annotated = pipeline.annotate(graph(), twin=False)
    soc = quick_host()
    mod, lowered = (
        pipeline.lower(pipeline.choose(annotated, soc, "auto", products), soc)
        for products in ({"first": 1.0}, None)
    )
    names = [
        [gv.name_hint for gv in m.get_global_vars() if gv.name_hint.startswith("conv2d_first")]
        for m in (mod, lowered)
    ]
    assert names[0] == names[1]
    assert len(mod[names[0][0]].params) < len(lowered[names[1][0]].params)  # no lists


def test_gates_that_pool_the_same_tensor_pool_it_once():
    def body(g, x):
        one = g.times(g.conv(x, 16, name="one"), g.gate(x, 16, 8))
        return g.add(one, g.times(g.conv(x, 16, 1, name="two"), g.gate(x, 16, 4)))

    mod = pipeline.annotate(Graph.build(body, SHAPE), twin=False)
    pools = [f for f in composites(mod).values() if f.attrs["Composite"].endswith("average")]
    assert len(pools) == 1
    assert sum(name.startswith("lv") for name in ops(mod)) <= 1


def test_dump_ir_writes_the_module_after_each_pass(tmp_path):
    folder = tmp_path / "new" / "ir"
    with pipeline.pass_context(dump_ir=folder):
        pipeline.annotate(graph())
    files = sorted(path.name for path in folder.iterdir())
    assert all(path.suffix == ".py" for path in folder.iterdir())
    names = [name.removesuffix(".py").split("_", 1)[1] for name in files]
    ours = ["FoldBatchNorm", "LinearToConv2d", "ExposeGates", "FuseKernels", "AnnotateOpen"]
    assert [name for name in names if name in ours] == ours
    dumped = next(path for path in folder.iterdir() if path.name.endswith("FuseKernels.py"))
    assert "dynprune.conv2d" in dumped.read_text()


def test_timer_times_each_pass():
    timer = Timer()
    with pipeline.pass_context(timer=timer):
        pipeline.annotate(graph())
    times = dict(timer.times_ms)
    assert {"FoldBatchNorm", "AnnotateOpen", "FuseKernels"} <= set(times)
    assert all(time_ms > 0 for time_ms in times.values())
    assert times["sequential"] >= times["AnnotateOpen"]


def test_a_pass_that_breaks_the_module_is_caught():
    @tvm.transform.module_pass(opt_level=0, name="Breaks")
    def breaks(mod, _):
        free = relax.Var("free", relax.TensorType((1,), "float32"))
        function = relax.Function([], free, free.ty).with_attr("global_symbol", "main")
        return tvm.IRModule({"main": function})

    with (
        tvm.transform.PassContext(instruments=[CheckWellFormed()]),
        pytest.raises(Exception, match=r"(?i)free|not defined|well"),
    ):
        breaks(graph())
