# SPDX-License-Identifier: Apache-2.0
"""What a recipe is made of: whitening, averaging, a teacher, a range of thresholds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.nn.util import config, write_data
from tvm_dynprune.errors import CheckpointError
from tvm_dynprune.nn.average import WeightAverage
from tvm_dynprune.nn.checkpoint import load_checkpoint
from tvm_dynprune.nn.config import ACCURATE_THRESHOLD
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.networks import build_network
from tvm_dynprune.nn.networks.compact import CompactVGG
from tvm_dynprune.nn.optimizer import make_optimizer
from tvm_dynprune.nn.schedule import accuracy_wanted
from tvm_dynprune.nn.teacher import distillation_loss
from tvm_dynprune.nn.train import _Trainer, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "mnist")


@pytest.fixture(scope="module")
def dense(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dense") / "checkpoint"
    train(config(data, gate=None, epochs=1), out)
    return out


def whitened() -> tuple[CompactVGG, torch.Tensor]:
    torch.manual_seed(0)
    model = build_network("compact_vgg")
    assert isinstance(model, CompactVGG)
    smooth = torch.rand(256, 3, 16, 16).repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = (smooth + 0.2 * torch.rand(256, 3, 32, 32)) / 1.2
    model.whiten(images)
    return model, images


def test_whitened_outputs_are_uncorrelated_with_variance_1() -> None:
    model, images = whitened()
    with torch.no_grad():
        out = model.stem(model.normalise(images)).transpose(0, 1).flatten(1)
    half = out[:16]
    torch.testing.assert_close(torch.cov(half), torch.eye(16), rtol=0, atol=0.05)
    bias = model.stem.bias.detach()[:, None]
    torch.testing.assert_close(out[16:] - bias[16:], -(half - bias[:16]), rtol=0, atol=1e-5)


def test_whitened_stem_is_not_trained(data: Path) -> None:
    model, _ = whitened()
    optimizer = make_optimizer(model, config(data))
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(model.stem.weight) not in trained
    assert id(model.stem.bias) in trained


def test_convolutions_of_compact_vgg_start_as_the_identity() -> None:
    model = build_network("compact_vgg")
    second = model.get_submodule("features.4")
    x = torch.rand(1, 64, 8, 8)
    torch.testing.assert_close(second(x), x)


def test_learning_rates_by_kind_of_parameter(data: Path) -> None:
    chosen = replace(
        config(data), norm_bias_learning_rate=64.0, gate_learning_rate=0.1, weight_decay=1e-3
    )
    model = _Trainer(chosen, data / "unused", resume=False).model
    optimizer = make_optimizer(model, chosen)
    found = {
        id(p): (group["factor"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert found[id(module.bias)] == (64.0, 0.0), name
        elif isinstance(module, nn.Conv2d):
            wanted = (0.1, 0.0) if name.startswith("gates.") else (1.0, 1e-3)
            assert found[id(module.weight)] == wanted, name


def test_average_follows_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.5)
    nn.init.ones_(model.weight)
    wanted = 0.0
    for step in range(8):
        average.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay)
        assert average.values["weight"].item() == pytest.approx(wanted)
    with average.applied(model):
        assert model.weight.item() == pytest.approx(wanted)
    assert model.weight.item() == 1.0


def test_average_is_saved_and_resumed(data: Path, tmp_path: Path) -> None:
    """Two epochs in one go and in two give the same averaged weights."""
    chosen = config(data, average=0.9)
    train(chosen, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        epochs, whole = [], _Trainer._epoch

        def interrupted(self: _Trainer, *arguments) -> float:
            epochs.append(1)
            if len(epochs) == 2:
                raise KeyboardInterrupt
            return whole(self, *arguments)

        patch.setattr(_Trainer, "_epoch", interrupted)
        with pytest.raises(Exception, match="interrupted"):
            train(chosen, tmp_path / "parts")
    train(chosen, tmp_path / "parts", resume=True)
    first, second = (load_checkpoint(tmp_path / name)[0] for name in ("whole", "parts"))
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_starts_from_the_dense_network(data: Path, dense: Path, tmp_path: Path) -> None:
    chosen = config(data, start=str(dense), distill=0.5)
    model = _Trainer(chosen, tmp_path / "out", resume=False).model
    teacher, _ = load_checkpoint(dense)
    own = model.state_dict()
    for name, value in teacher.state_dict().items():
        assert torch.equal(own[name], value), name
    train(chosen, tmp_path / "out")
    assert gates_of(load_checkpoint(tmp_path / "out")[0])


def test_start_with_gates_is_refused(data: Path, tmp_path: Path) -> None:
    train(config(data, epochs=1), tmp_path / "gated")
    with pytest.raises(CheckpointError, match="it has gates: start from one trained with --gate"):
        train(config(data, start=str(tmp_path / "gated")), tmp_path / "out")


def test_start_of_another_network_is_refused(
    data: Path, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (dense / "checkpoint.json").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoint.json").write_text(text.replace('"0"', '"zero"'))
    (other / "weights.safetensors").write_bytes((dense / "weights.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="classes are .*zero.* same network and data"):
        train(config(data, start=str(other)), tmp_path / "out")


def test_distillation_loss() -> None:
    logits = torch.tensor([[1.0, -1.0, 0.5]])
    assert distillation_loss(logits, logits).item() == pytest.approx(0.0, abs=1e-6)
    wanted = torch.tensor([[2.0, 0.0, -2.0]])
    p, q = torch.softmax(wanted / 2, 1), torch.softmax(logits / 2, 1)
    divergence = (p * (p / q).log()).sum().item()
    assert distillation_loss(logits, wanted).item() == pytest.approx(4 * divergence, rel=1e-5)


def test_steps_cover_the_range_of_thresholds() -> None:
    wanted = [accuracy_wanted(step) for step in range(300)]
    assert wanted[::3] == [0.0] * 100
    assert wanted[1::3] == [1.0] * 100
    between = sorted(wanted[2::3])
    gaps = [b - a for a, b in zip(between, between[1:], strict=False)]
    assert min(between) < 0.05
    assert max(between) > 0.95
    assert max(gaps) < 0.03


def test_a_range_of_thresholds_is_trained_and_measured(data: Path, tmp_path: Path) -> None:
    chosen = config(data, budget=0.3, accurate_budget=0.8)
    trainer = _Trainer(chosen, tmp_path / "out", resume=False)
    seen = []
    for gate in gates_of(trainer.model).values():
        gate.register_forward_hook(lambda gate, *_: seen.append(gate.threshold.item()))
    trainer.model.train()
    trainer._step(torch.rand(8, 1, 28, 28), torch.arange(8), 0.9, 0.5)
    assert set(seen) == {ACCURATE_THRESHOLD / 2}
    trainer.schedule.set(trainer.model, 1.0, 0.5)
    assert trainer.schedule._budget_now == pytest.approx(0.55)
    trainer.schedule.finish(trainer.model)
    assert {gate.threshold.item() for gate in gates_of(trainer.model).values()} == {0.0}

    train(chosen, tmp_path / "out")
    model, info = load_checkpoint(tmp_path / "out")
    assert info.history[0]["validation_accurate_mac_cut"] <= info.history[0]["validation_mac_cut"]
    assert {gate.threshold.item() for gate in gates_of(model).values()} == {0.0}
