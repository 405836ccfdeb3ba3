# SPDX-License-Identifier: Apache-2.0
"""What is minimised but for a budget of MACs: a penalty with a gain; that no gate is stuck."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.nn.util import config, write_data
from tvm_dynprune import cli_train
from tvm_dynprune.errors import UserError
from tvm_dynprune.nn import build_network, gate_loss, insert_gates, start_gates, step
from tvm_dynprune.nn.checkpoint import load_checkpoint
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.insert import GatedModel
from tvm_dynprune.nn.loss import compute_penalty, floor_loss, stuck_loss
from tvm_dynprune.nn.train import train

SHAPE = (1, 28, 28)


@pytest.fixture
def model() -> GatedModel:
    torch.manual_seed(0)
    return insert_gates(build_network("fashion_cnn"), group_size=16).train()


def test_the_gain_rises_while_gates_are_annealed(model: GatedModel) -> None:
    start_gates(model, SHAPE, steps=4, gain=0.3, warm_up=0.25, anneal=0.5)
    gates = gates_of(model)
    gates["gates.features_3"].gain = 7.0
    for share in (None, 0.0, 0.5, 1.0):
        model(torch.rand(4, *SHAPE))
        if share is None:
            assert gate_loss(model).item() == 0
        else:
            wanted = share * 0.3 * compute_penalty(model) + 5 * floor_loss(model, 0.15)
            torch.testing.assert_close(gate_loss(model), wanted)
        step(model)


def test_a_larger_gain_closes_more(tmp_path: Path) -> None:
    data = write_data(tmp_path / "mnist", train=100)
    cuts = []
    for gain in (0.01, 3.0):
        out = tmp_path / str(gain)
        train(config(data, gain=gain, epochs=3, gate_learning_rate=1.0), out)
        _, info = load_checkpoint(out)
        assert info.training["gain"] == gain
        cuts.append(info.history[-1]["validation_mac_cut"])
    assert cuts[1] > cuts[0] + 0.1


def set_bias(model: GatedModel, layer: str, bias: float) -> torch.nn.Parameter:
    """Give all groups of a gate the same logits, whatever the input."""
    conv = gates_of(model)[f"gates.{layer}"].conv
    torch.nn.init.zeros_(conv.weight)
    torch.nn.init.constant_(conv.bias, bias)
    return conv.bias


@pytest.mark.parametrize(("logit", "sign"), [(20.0, 1), (-20.0, -1)])
def test_a_stuck_gate_gets_a_gradient(model: GatedModel, logit: float, sign: int) -> None:
    """At 20 logits the sigmoid's own gradient is 0 in float32 (at -20 it is 2e-9)."""
    start_gates(model, SHAPE, steps=1, budget=0.1, warm_up=0.0, anneal=0.1, stuck_weight=0.0)
    bias = set_bias(model, "features_10", logit)
    gradients = []
    for weight in (0.0, 0.02):
        start_gates(model, SHAPE, steps=1, budget=0.1, warm_up=0.0, stuck_weight=weight)
        set_bias(model, "features_10", logit)
        bias.grad = None
        model(torch.rand(4, *SHAPE))
        gate_loss(model).backward()
        assert bias.grad is not None
        gradients.append(bias.grad.sum().item())
    assert abs(gradients[0]) < 1e-8
    assert gradients[1] == pytest.approx(0.02 * sign, rel=1e-3)  # going down it comes back


def test_a_stuck_open_gate_is_freed_and_then_the_budget_decides(model: GatedModel) -> None:
    closed = {}
    for weight in (0.0, 0.02):
        start_gates(model, SHAPE, steps=400, budget=0.3, warm_up=0.0, stuck_weight=weight)
        bias = set_bias(model, "features_10", 12.0)
        optimizer = torch.optim.SGD([bias], lr=0.5, momentum=0.9)
        x = torch.rand(2, *SHAPE)
        for _ in range(200):
            model(x)
            optimizer.zero_grad()
            gate_loss(model).backward()
            optimizer.step()
            step(model)
        closed[weight] = (bias < 0).any().item()
    assert closed == {0.0: False, 0.02: True}


def test_healthy_gates_do_not_notice(model: GatedModel) -> None:
    """One group within reach is enough, however far the others are open or closed."""
    start_gates(model, SHAPE, steps=1, warm_up=0.0, anneal=0.1)
    for gate in gates_of(model).values():
        torch.nn.init.zeros_(gate.conv.weight)
        gate.conv.bias.data = torch.full_like(gate.conv.bias, 30.0)
        gate.conv.bias.data[0] = 1.2
        gate.slope = 3.0
    model(torch.rand(4, *SHAPE))
    loss = stuck_loss(model, 4.0)
    loss.backward()
    assert loss.item() == 0
    for gate in gates_of(model).values():
        assert gate.conv.bias.grad.abs().max() == 0


def test_lower_thresholds_do_not_make_gates_stuck(model: GatedModel) -> None:
    options = {"budget": 0.3, "accurate_budget": 0.6, "warm_up": 0.0, "anneal": 0.1}
    start_gates(model, SHAPE, steps=2, **options)
    bias = set_bias(model, "features_10", 0.5)
    step(model)  # now at the lowest threshold, where the margin is 2.5 * slope
    model(torch.rand(4, *SHAPE))
    assert stuck_loss(model, 4.0) > 0
    bias.grad = None
    gate_loss(model).backward()
    assert bias.grad.abs().sum() < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.3, "latency_budget": 0.3, "soc": "host"}, "--budget and --latency-budget"),
        ({"gain": 0.1, "budget": 0.3}, "--gain and --budget: give one"),
        ({"gain": 0.1, "latency_budget": 0.3, "soc": "host"}, "--gain and --latency-budget"),
        ({"gain": 0.1, "accurate_budget": 0.3}, "--gain and --accurate-budget"),
        ({"gain": -0.1}, "--gain -0.1: it must be above 0"),
        ({"latency_budget": 1.5, "soc": "host"}, "--latency-budget 1.5: a share"),
        ({"latency_budget": 0.5}, "--latency-budget and --soc need each other"),
        ({"soc": "host"}, "--latency-budget and --soc need each other"),
        ({"latency_budget": 0.5, "soc": "pdp-11"}, "unknown SoC 'pdp-11'"),
        ({"latency_budget": 0.5, "soc": "host", "gate": "none"}, "--gate none"),
        ({"accurate_budget": 0.3}, "must be above --budget 0.35"),
        (
            {"accurate_budget": 0.3, "latency_budget": 0.4, "soc": "host"},
            "must be above --latency-budget 0.4",
        ),
    ],
)
def test_targets_that_do_not_go_together(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        cli_train.train(tmp_path, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)


def test_latency_budget_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    home = sys.modules["tvm_dynprune.nn.train"]  # the package has a function of this name
    monkeypatch.setattr(home, "train", lambda config, *_, **__: seen.append(config))
    data = write_data(tmp_path / "mnist")
    options = {"latency_budget": 0.4, "accurate_budget": 0.6, "soc": "x86-avx2"}
    cli_train.train(data, tmp_path / "out", **options)
    cli_train.train(data, tmp_path / "out")
    by_latency, by_macs = seen
    assert (by_latency.budget, by_latency.accurate_budget) == (0.4, 0.6)
    assert by_latency.soc == "x86-avx2"
    assert by_latency.latency.dense > by_latency.latency.fixed > 0
    assert (by_macs.budget, by_macs.soc, by_macs.latency) == (0.35, None, None)
