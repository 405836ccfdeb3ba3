# SPDX-License-Identifier: Apache-2.0
import tvm
from tvm.relax import op

from tests.passes.util import (
    Graph,
    assert_promises,
    assert_unchanged,
    composites,
    ops,
    random_inputs,
    run,
)
from tvm_dynprune.passes.add_dense_twin import TWIN, AddDenseTwin
from tvm_dynprune.passes.fuse_kernels import FuseKernels

X = (2, 8, 6, 6)


def test_the_twin_has_neither_masks_nor_gates():
    def body(g, x):
        y = g.times(g.relu(g.conv(x, 16)), g.gate(x, 16, 4))
        return g.times(g.conv(y, 8), g.gate(y, 8))

    before = Graph.build(body, X)
    after = assert_promises(AddDenseTwin(), before)
    assert ops(after, TWIN) == ["nn.conv2d", "nn.relu", "nn.conv2d"]
    tvm.ir.assert_structural_equal(after["main"], before["main"])


def test_the_twin_computes_what_open_gates_let_through():
    def body(g, x):
        y = g.times(g.relu(g.conv(x, 16)), g.gate(x, 16, 4, threshold=-1e9))
        return g.add(y, g.times(g.conv(y, 16), g.gate(y, 16, threshold=-1e9)))

    after = AddDenseTwin()(Graph.build(body, X))
    inputs = random_inputs(after)
    assert (run(after, *inputs)[0] == run(after, *inputs, name=TWIN)[0]).all()


def test_a_multiplication_that_is_no_gate_stays_in_the_twin():
    def body(g, x):
        y = g.conv(x, 16)
        logits = g.conv(g.emit(op.mean(x, axis=[2, 3], keepdims=True)), 16, 1)
        return g.times(y, g.emit(op.sigmoid(logits)))

    before = Graph.build(body, X)
    assert ops(AddDenseTwin()(before), TWIN) == ops(before)


def test_without_gates_the_twin_is_the_network():
    before = Graph.build(lambda g, x: g.relu(g.conv(x, 4)), X)
    after = assert_promises(AddDenseTwin(), before)
    assert ops(after, TWIN) == ops(after)


def test_a_module_with_a_twin_is_left_alone():
    before = AddDenseTwin()(Graph.build(lambda g, x: g.conv(x, 4), X))
    assert_unchanged(AddDenseTwin(), before)


def test_twin_and_network_get_composites_of_their_own():
    mod = AddDenseTwin()(Graph.build(lambda g, x: g.times(g.conv(x, 4), g.gate(x, 4)), X))
    mod = FuseKernels()(mod)
    called = [set(ops(mod, name)) & set(composites(mod)) for name in ("main", TWIN)]
    assert called[0]
    assert called[1]
    assert not called[0] & called[1]
