# SPDX-License-Identifier: Apache-2.0
"""Every kind of gate: starts open, learns, is counted, and compiles to code that skips."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.kernels.util import quick_host
from tests.nn.util import config, write_data
from tvm_dynprune.compiler import compile
from tvm_dynprune.frontend import from_exported
from tvm_dynprune.frontend.model import Model
from tvm_dynprune.nn.checkpoint import load_checkpoint
from tvm_dynprune.nn.export import export
from tvm_dynprune.nn.gate_kinds import (
    BLOCK,
    GATES,
    OPEN_BIAS,
    GumbelGate,
    LKAMReluGate,
    SqueezeGate,
)
from tvm_dynprune.nn.gates import Gate, gates_of
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.macs import count_macs, plan_macs
from tvm_dynprune.nn.networks import build_network
from tvm_dynprune.nn.train import train
from tvm_dynprune.runtime.session import Session

CHANNEL_GATES = [kind for kind in GATES if kind != BLOCK]  # those of blocks: test_block_gates
X = torch.rand(5, 32, 6, 7, generator=torch.Generator().manual_seed(1))


def decided(kind: str) -> Gate:
    """A gate whose threshold lies in the middle of its logits for X."""
    torch.manual_seed(0)
    gate = GATES[kind](32, 32, 4).eval()
    gate.spread()
    with torch.no_grad():
        gate.threshold.fill_(float(gate.logits(X).median()) + 1e-4)
    return gate


@pytest.mark.parametrize("kind", GATES)
def test_starts_open(kind: str) -> None:
    gate = GATES[kind](32, 32, 4).eval()
    assert torch.equal(gate(X), torch.ones(5, 32, 1, 1))


@pytest.mark.parametrize("kind", GATES)
def test_hard_mask_is_logits_above_the_threshold(kind: str) -> None:
    gate = decided(kind)
    wanted = (gate.logits(X) > gate.threshold).float().repeat_interleave(4, 1)
    assert 0.2 < wanted.mean() < 0.8
    assert torch.equal(gate(X), wanted)


@pytest.mark.parametrize("kind", [kind for kind in GATES if kind != "gumbel"])
def test_training_decides_as_evaluation_does(kind: str) -> None:
    gate = decided(kind)
    assert torch.equal(gate.train()(X) > 0.5, gate.eval()(X) > 0.5)


@pytest.mark.parametrize("kind", GATES)
def test_every_weight_learns(kind: str) -> None:
    gate = decided(kind).train()
    (gate(X) * torch.rand(5, 32, 1, 1)).sum().backward()
    for name, parameter in gate.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_formulas() -> None:
    relu = decided("lkam_relu")
    assert isinstance(relu, LKAMReluGate)
    pixels = torch.einsum("nchw,gc->nghw", X, relu.conv.weight[:, :, 0, 0])
    wanted = (pixels + relu.conv.bias[:, None, None]).clamp(min=0).mean((2, 3))
    torch.testing.assert_close(relu.logits(X)[:, :, 0, 0], wanted + relu.bias[:, :, 0, 0])

    squeeze = decided("squeeze")
    assert isinstance(squeeze, SqueezeGate)
    pooled = F.linear(X.mean((2, 3)), squeeze.squeeze.weight[:, :, 0, 0], squeeze.squeeze.bias)
    wanted = F.linear(pooled.relu(), squeeze.conv.weight[:, :, 0, 0], squeeze.conv.bias)
    torch.testing.assert_close(squeeze.logits(X)[:, :, 0, 0], wanted)


def test_gumbel_draws_with_the_probability_of_its_soft_value() -> None:
    """P(logit + noise > threshold) = sigmoid(slope * (logit - threshold))."""
    torch.manual_seed(0)
    gate = GumbelGate(4, 8, 1).train()
    gate.threshold.fill_(OPEN_BIAS - 0.4)
    gate.slope = 2.0
    mask = gate(torch.rand(4000, 4, 2, 2))
    wanted = torch.sigmoid(torch.tensor(2.0 * 0.4))
    torch.testing.assert_close(mask.mean((0, 2, 3)), wanted.expand(8), rtol=0, atol=0.03)
    gate.eval()
    assert torch.equal(gate(torch.rand(9, 4, 2, 2)), torch.ones(9, 8, 1, 1))


def gated(kind: str) -> nn.Module:
    """The demo's network with about half of each gate's groups open."""
    torch.manual_seed(0)
    model = insert_gates(build_network("fashion_cnn"), kind, 16).eval()
    x = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(2))

    def halve(gate: Gate, inputs: tuple[torch.Tensor]) -> None:
        gate.threshold.fill_(float(gate.logits(inputs[0]).median()))

    gates = gates_of(model).values()
    for gate in gates:
        gate.spread()
    hooks = [gate.register_forward_pre_hook(halve) for gate in gates]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return model


@pytest.mark.parametrize("kind", CHANNEL_GATES)
def test_compiled_as_masked_and_counted_alike(kind: str, tmp_path: Path) -> None:
    model = gated(kind)
    program = export(model, torch.rand(2, 1, 28, 28))

    def reference(x: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [model(torch.from_numpy(x)).numpy()]

    imported = Model("fashion_cnn", from_exported(program), reference)
    session = Session(compile(imported, quick_host(), tmp_path / "a", lowering="indexed"))
    x = np.random.default_rng(3).random((6, 1, 28, 28), dtype="float32")
    got, (wanted,) = session.run(x), reference(x)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    counted = count_macs(model, torch.from_numpy(x))
    assert session.macs.tolist() == counted.executed_total.tolist()
    assert 0.2 < counted.mac_cut < 0.9
    closed = [~decided.all() for decided in session.open_channels]
    assert all(closed), "every gate should close something"


@pytest.mark.parametrize("kind", [kind for kind in CHANNEL_GATES if kind != "lkam"])
def test_trains_and_is_read_again(kind: str, tmp_path: Path) -> None:
    data = write_data(tmp_path / "mnist")
    train(config(data, gate=kind), tmp_path / "out")
    model, info = load_checkpoint(tmp_path / "out")
    assert info.gate == kind
    assert {type(gate) for gate in gates_of(model).values()} == {GATES[kind]}
    plan = plan_macs(model, (1, 28, 28))
    assert all(name in {layer.name for layer in plan.layers} for name in gates_of(model))
