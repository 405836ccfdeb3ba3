# SPDX-License-Identifier: Apache-2.0
"""Activations as importers write them are recognised, and kernels compute them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from tvm import relax
from tvm.relax import op

from tests.kernels.util import quick_host
from tests.linked import virtual_machine
from tests.passes.util import Graph, results_of_both
from tvm_dynprune.frontend.exported import from_exported
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.activations import activation_of
from tvm_dynprune.passes.dataflow import Dataflow
from tvm_dynprune.passes.expose_gates import gate_infos

SHAPE = (2, 8, 4, 4)
LEAKY = 'formula:["nn.leakyrelu", "x", 0.25]'
TIMES_TANH = 'formula:["multiply", "x", ["tanh", "x"]]'


def last(body, *shapes):
    """The last activation of the function."""
    flow = Dataflow(Graph.build(body, *(shapes or [SHAPE]))["main"])
    found = [activation_of(flow, binding.var) for binding in flow.bindings]
    return next((one for one in reversed(found) if one is not None), None)


@pytest.mark.parametrize(
    ("body", "label", "keeps_zero"),
    [
        (lambda g, x: g.relu(x), "relu", True),
        (lambda g, x: g.relu6(g.relu(x)), "clip:0.0:6.0", True),
        (lambda g, x: g.emit(op.maximum(x, relax.const(0.0))), "relu", True),
        (lambda g, x: g.emit(op.minimum(relax.const(6.0), g.relu(x))), "clip:0.0:6.0", True),
        (lambda g, x: g.emit(op.clip(x, 1.0, 2.0)), "clip:1.0:2.0", False),
        (lambda g, x: g.emit(op.sigmoid(x)), 'formula:["sigmoid", "x"]', False),
        (lambda g, x: g.emit(op.minimum(x, relax.const(2.0))), "clip:-inf:2.0", True),
        (lambda g, x: g.emit(op.nn.leakyrelu(x, 0.25)), LEAKY, True),
        (lambda g, x: g.times(x, g.emit(op.tanh(x))), TIMES_TANH, True),
    ],
)
def test_labels(body, label, keeps_zero):
    found = last(lambda g, x: body(g, g.conv(x, 8)))
    assert (found.label(), found.keeps_zero) == (label, keeps_zero)


@pytest.mark.parametrize(
    "body",
    [
        lambda g, x: g.add(g.conv(x, 8), x),  # of two tensors
        lambda g, x: g.emit(op.multiply(g.conv(x, 8), g.constant(2, 1, 4, 4))),
        lambda g, x: g.emit(op.nn.softmax(g.conv(x, 8))),
        lambda g, x: g.emit(op.greater(g.conv(x, 8), relax.const(0.0))),
    ],
)
def test_what_is_no_activation(body):
    assert last(body) is None


def test_what_others_read_is_computed():
    def body(g, x):
        y = g.conv(x, 8)
        z = g.emit(op.sigmoid(y))
        return g.times(y, z), z

    flow = Dataflow(Graph.build(body, SHAPE)["main"])
    assert all(activation_of(flow, binding.var) is None for binding in flow.bindings)


@pytest.mark.parametrize(
    "write",
    [
        lambda g, x, slope: g.emit(op.nn.prelu(x, relax.const(slope), axis=1)),
        lambda g, x, slope: g.emit(
            op.where(
                g.emit(op.greater(x, relax.const(0.0))),
                x,
                g.times(relax.const(slope.reshape(1, 8, 1, 1)), x),
            )
        ),
    ],
    ids=["onnx", "exported"],
)
@pytest.mark.parametrize("uniform", [False, True])
def test_a_slope_for_each_channel_is_a_factor(write, uniform):
    slope = np.full(8, 0.25, "float32") if uniform else np.linspace(-1, 1, 8, dtype="float32")
    found = last(lambda g, x: write(g, g.conv(x, 8), slope))
    if uniform:
        assert (found.label(), found.factors) == (LEAKY, ())
    else:
        assert found.label(first=2) == LEAKY.replace("0.25", '["factor", 2]')
        (factor,) = found.factors
        assert (factor.value.numpy().reshape(-1) == slope).all()
    assert found.keeps_zero


class Gated(nn.Module):
    """Two gated convolutions, a depthwise one and a residual addition, each with an activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.depthwise, self.last = nn.Conv2d(24, 24, 3, groups=24), nn.Conv2d(24, 16, 1)
        self.gate_1, self.gate_2 = nn.Conv2d(3, 2, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.activation(self.first(x)) * self.mask(self.gate_1, x)
        z = self.activation(self.second(y)) * self.mask(self.gate_2, y)
        z = self.last(self.activation(self.depthwise(z)))
        return self.activation(z + y[:, :, 1:-1, 1:-1])

    def mask(self, gate: nn.Module, x: torch.Tensor) -> torch.Tensor:
        mask = (gate(x.mean((2, 3), keepdim=True)) > 0).float()
        return mask.repeat_interleave(8, 1)


class ByChannel(nn.Module):
    """PReLU; then, if `norm`, a batch norm, which comes too late to be folded."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.norm, self.numbers = norm, nn.Parameter(torch.randn(3, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        slope, factor, offset = self.numbers[:, : x.shape[1]]
        x = F.prelu(x, slope)
        return x * factor[:, None, None] + offset[:, None, None] if self.norm else x


class AtMostOne(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.tanh() + torch.clamp(x, max=1.0)


ACTIVATIONS = [
    nn.ReLU6(), nn.Hardswish(), nn.SiLU(), nn.LeakyReLU(0.1), nn.GELU(), nn.GELU("tanh"), nn.Mish(),
    nn.Hardsigmoid(), nn.ELU(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.Hardtanh(-0.5, 0.25),
    AtMostOne(), ByChannel(norm=False), ByChannel(norm=True),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_gates_after_any_activation_are_used_and_the_numbers_stay(activation):
    torch.manual_seed(0)
    model, x = Gated(activation).eval(), torch.randn(3, 3, 9, 8)
    with torch.no_grad():
        expected = model(x).numpy()
    mod = pipeline.annotate(from_exported(torch.export.export(model, (x,))), twin=False)
    assert len(gate_infos(mod["main"])) == 2
    quick = quick_host()
    chosen = pipeline.choose(mod, quick, "indexed")
    network = pipeline.build(pipeline.lower(chosen, quick), quick)
    thresholds = np.zeros(2, "float32")
    machine = virtual_machine(network)
    got, opened = results_of_both(machine, [x.numpy(), thresholds])
    assert 0 < opened.mean() < 1
    assert np.abs(got - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
