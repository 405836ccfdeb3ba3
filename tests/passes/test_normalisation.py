# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

from tests.passes.util import Graph, run
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.dataflow import Dataflow
from tvm_dynprune.passes.normalisation import normalisation_of
from tvm_dynprune.soc import load_soc

X = (1, 3, 12, 12)
MEAN = np.array([0.5, 0.25, 1.0], "float32").reshape(1, 3, 1, 1)


def found(mod: tvm.IRModule, name: str):
    flow = Dataflow(mod["main"])
    (var,) = (var for var in flow.definition if var.name == name)
    return normalisation_of(flow, var)


@pytest.mark.parametrize("steps", ["both", "offset", "factor"])
def test_reads_what_is_done_to_each_channel(steps):
    def body(g, x):
        if steps != "factor":
            x = g.emit(op.subtract(x, relax.const(MEAN)), "image" if steps == "offset" else "lv")
        if steps != "offset":
            x = g.emit(op.multiply(x, relax.const(2 * MEAN)), "image")
        return g.conv(x, 8)

    graph = Graph.build(body, X)
    source, affine = found(graph, "image")
    assert source.same_as(graph["main"].params[0])
    expected = np.zeros(3) if steps == "factor" else -MEAN.reshape(-1)
    np.testing.assert_array_equal(affine.offset, expected)
    expected = np.ones(3) if steps == "offset" else 2 * MEAN.reshape(-1)
    np.testing.assert_array_equal(affine.factor, expected)


def test_leaves_other_tensors():
    graph = Graph.build(lambda g, x: g.emit(op.multiply(x, x), "image"), X)
    assert found(graph, "image") is None
    pixels = relax.const(np.ones((1, 1, 12, 12), "float32"))
    graph = Graph.build(lambda g, x: g.emit(op.multiply(x, pixels), "image"), X)
    assert found(graph, "image") is None


@pytest.mark.parametrize(("kernel", "strides"), [(3, (1, 1)), (7, (2, 2))])
@pytest.mark.parametrize("lowering", ["auto", "indexed"])
def test_a_network_normalises_where_it_changes_layout(kernel, strides, lowering):
    def body(g, x):
        y = g.emit(op.divide(g.emit(op.subtract(x, relax.const(MEAN))), relax.const(MEAN)))
        return g.conv(y, 16, kernel, strides=strides)

    graph, soc = Graph.build(body, X), load_soc("host")
    machine = relax.VirtualMachine(
        pipeline.build(pipeline.optimize(graph, soc, lowering), soc), tvm.cpu()
    )
    ran = []
    machine.set_instrument(lambda _f, name, before, *_: ran.append(name) if before else None)
    x = np.random.default_rng(0).random(X, "float32")
    (got,) = machine["main"](tvm.runtime.tensor(x))
    assert not [name for name in ran if "subtract" in name or "multiply" in name]
    (wanted,) = run(graph, x)
    assert np.abs(got.numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()
