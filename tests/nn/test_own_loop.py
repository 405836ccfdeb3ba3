# SPDX-License-Identifier: Apache-2.0
"""A training loop of the user's own: the example of the docs, and what its three calls do."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.nn.util import write_data
from tvm_dynprune.nn import build_network, gate_loss, insert_gates, start_gates, step
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.loss import budget_loss, floor_loss
from tvm_dynprune.nn.macs import plan_macs

DOCS = Path(__file__).parents[2] / "docs" / "training.md"


def test_example_of_the_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path / "data", train=64)
    monkeypatch.chdir(tmp_path)
    (example,) = DOCS.read_text().split("```python\n")[1:]
    names: dict[str, object] = {}
    exec(example.split("```")[0], names)
    assert isinstance(names["program"], torch.export.ExportedProgram)
    assert "5 of 6 convolutions gated" in capsys.readouterr().out
    model = names["model"]
    assert isinstance(model, nn.Module)
    assert {gate.mode for gate in gates_of(model).values()} == {"hard"}


def test_schedule_of_four_steps() -> None:
    torch.manual_seed(0)
    model = insert_gates(build_network("fashion_cnn"), group_size=16).train()
    options = {"budget": 0.5, "accurate_budget": 0.7, "warm_up": 0.25, "anneal": 0.5}
    start_gates(model, (1, 28, 28), steps=4, **options)
    plan, gates = plan_macs(model, (1, 28, 28)), gates_of(model).values()
    x = torch.rand(4, 1, 28, 28)
    # Steps are taken at threshold 0, at the lowest, and between (here at 0 again), in turns.
    wanted = [None, 1.0, 1 + (0.5 - 1) * 0.5]
    for budget in wanted:
        model(x)
        modes = {gate.mode for gate in gates}
        if budget is None:
            assert modes == {"open"}
            assert gate_loss(model).item() == 0
        else:
            assert modes == {"hard"}
            loss = 5 * (budget_loss(model, plan, budget) + floor_loss(model, 0.15))
            torch.testing.assert_close(gate_loss(model), loss)
        step(model)
    step(model)
    assert {gate.mode for gate in gates} == {"hard"}
    assert {gate.threshold.item() for gate in gates} == {0.0}


def test_loss_before_the_start() -> None:
    model = insert_gates(build_network("fashion_cnn"))
    with pytest.raises(RuntimeError, match="call start_gates before the training"):
        gate_loss(model)
