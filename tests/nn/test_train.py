# SPDX-License-Identifier: Apache-2.0
"""Training: what it writes, that it goes on where it stopped, and what it says when it cannot."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.nn.util import config, write_data
from tvm_dynprune.data import DIGITS, FASHION, LabelledImages, load_images
from tvm_dynprune.errors import CheckpointError, DataError, OutputExistsError, UserError
from tvm_dynprune.nn.batches import Batches
from tvm_dynprune.nn.checkpoint import LOG, RESUME, WEIGHTS, load_checkpoint, read_info
from tvm_dynprune.nn.evaluate import evaluate
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.loss import expected_mac_fraction, floor_loss
from tvm_dynprune.nn.macs import plan_macs
from tvm_dynprune.nn.optimizer import learning_rate_factor
from tvm_dynprune.nn.train import _Trainer, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "mnist")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs without interruption."""
    out = tmp_path_factory.mktemp("trained") / "checkpoint"
    train(config(data), out)
    return out


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C before the given step, counted from 1 over all epochs."""
    whole, taken = _Trainer._step, []

    def interrupted(self: Any, *arguments: Any) -> float:
        taken.append(1)
        if len(taken) == step:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(_Trainer, "_step", interrupted)


def assert_same_checkpoint(got: Path, wanted: Path) -> None:
    """Bit for bit: weights, statistics, momentum; and the same records but for the seconds."""
    for name in (WEIGHTS, RESUME):
        first, second = load_file(got / name), load_file(wanted / name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), f"{name}: {key}"
    records = [[{**r, "seconds": 0} for r in read_info(p).history] for p in (got, wanted)]
    assert records[0] == records[1]


def test_what_a_training_writes(trained: Path, data: Path) -> None:
    model, info = load_checkpoint(trained)
    assert (info.network, info.gate, info.group_size) == ("fashion_cnn", "lkam", 16)
    assert info.classes == [str(i) for i in range(10)]
    assert info.epoch == 2
    assert info.training["batch_size"] == 8
    assert info.versions.keys() == {"numpy", "torch"}

    first, last = info.history
    measured = ("accuracy", "mac_cut", "open_fraction", "varying")
    validation = {f"validation_{name}" for name in measured}
    assert set(first) == {"epoch", "loss", *validation, "gates", "seconds"}
    assert set(last) == {*first, *(f"test_{name}" for name in measured)}
    assert first["gates"].keys() == gates_of(model).keys()
    mean = np.mean(list(first["gates"].values()))
    assert first["validation_open_fraction"] == pytest.approx(mean, abs=1e-4)
    assert [json.loads(line) for line in (trained / LOG).read_text().splitlines()] == info.history

    # What the record says is what the checkpoint does.
    test = load_images(data, "test")
    again = evaluate(model, test, plan_macs(model, (1, 28, 28))).record("test_")
    assert again == {key: last[key] for key in again}
    assert not list(trained.glob(".*")), "temporary files are left"


def test_varying_groups_are_those_that_some_images_close(data: Path) -> None:
    """Of 4 + 4 groups one depends on the image; the others are always open, or always closed."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(c, 8, 3) for c in (1, 8, 8)), nn.Flatten(), nn.LazyLinear(10))
    model(torch.rand(2, 1, 28, 28))
    gated = insert_gates(model, group_size=2, first=True, exclude=["2"])
    test = load_images(data, "test")
    images = torch.from_numpy(test.images).float() / 255
    one, other = gates_of(gated).values()
    with torch.no_grad():
        one.conv.bias.copy_(torch.tensor([1.0, -1.0, 1.0, 0.0]))
        one.conv.weight[3] = 1.0
        one.conv.bias[3] = -images.mean((1, 2, 3)).median()
        other.conv.bias.copy_(torch.tensor([1.0, -1.0, 1.0, 1.0]))
    found = evaluate(gated, test, plan_macs(gated, (1, 28, 28)))
    assert found.varying == pytest.approx(1 / 8)


def test_gates_learn(trained: Path, data: Path, tmp_path: Path) -> None:
    """They are not what they began with."""
    model, _ = load_checkpoint(trained)
    fresh = gates_of(_Trainer(config(data), tmp_path / "out", resume=False).model)
    for name, gate in gates_of(model).items():
        for got, began in zip(gate.parameters(), fresh[name].parameters(), strict=True):
            assert (got != began).float().mean() > 0.5, name
    assert any(name.startswith("momentum/gates.") for name in load_file(trained / RESUME))


def test_the_same_seed_gives_the_same_weights(trained: Path, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # whatever was drawn before does not matter
    train(config(data), tmp_path / "again")
    assert_same_checkpoint(tmp_path / "again", trained)


@pytest.mark.parametrize("step", [6 + 1, 6 + 4])
def test_interrupted_and_resumed_is_uninterrupted(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    out = tmp_path / "resumed"
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(UserError, match=r"interrupted in epoch 2 of 2.* --resume continues"):
            train(config(data), out)
    assert read_info(out).epoch == 1
    load_checkpoint(out)
    train(config(data), out, resume=True)
    assert_same_checkpoint(out, trained)


def test_resumed_in_bf16(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(data, bf16=True)
    train(chosen, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 6 + 1)
        with pytest.raises(UserError):
            train(chosen, tmp_path / "resumed")
    train(chosen, tmp_path / "resumed", resume=True)
    assert_same_checkpoint(tmp_path / "resumed", tmp_path / "whole")


def test_killed_while_a_checkpoint_is_written(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of epoch 2 beside the JSON of epoch 1 do not mix."""
    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        stop_at(patch, 6 + 1)
        with pytest.raises(UserError):
            train(config(data), out)
    (out / WEIGHTS).write_bytes((trained / WEIGHTS).read_bytes())
    train(config(data), out, resume=True)
    assert_same_checkpoint(out, trained)


@pytest.mark.parametrize("mirrored", [True, False])
def test_digits_are_not_mirrored(mirrored: bool) -> None:
    """Every image is black on the left and white on the right; shifts bring black from outside."""
    images = np.zeros((64, 1, 8, 8), "uint8")
    images[..., 4:] = 255
    classes = FASHION if mirrored else DIGITS
    data = LabelledImages(images, np.zeros(64, "int64"), classes)
    made, _ = next(Batches(data, 64, seed=0, shift=1).epoch(0))
    lighter_left = made[..., :4].sum((1, 2, 3)) > made[..., 4:].sum((1, 2, 3))
    assert bool(lighter_left.any()) == mirrored


def test_resuming_a_finished_training_changes_nothing(trained: Path, data: Path) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    train(config(data), trained, resume=True)
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_interrupted_before_the_first_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be continued, and nothing claims so."""
    stop_at(monkeypatch, 2)
    with pytest.raises(UserError, match="interrupted in epoch 1 of 2") as caught:
        train(config(data), tmp_path / "out")
    assert "--resume" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.5}, r"learning_rate = 0\.05, not 0\.5"),
        ({"epochs": 3}, "epochs = 2, not 3"),
        ({"group_size": 8}, "group_size = 16, not 8"),
        ({"gate": None}, "gate = lkam, not None"),
    ],
)
def test_resuming_with_other_options(
    trained: Path, data: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        train(config(data, **change), trained, resume=True)


def test_resuming_nothing(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(config(data), tmp_path / "nothing", resume=True)


def test_existing_output_is_kept(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(OutputExistsError, match="--force"):
        train(config(data), tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


def test_force_with_bad_data_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(DataError):
        train(config(tmp_path / "no data"), tmp_path / "out", force=True)
    assert (tmp_path / "out" / "mine.txt").exists()


def test_loss_that_is_not_finite(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"in epoch 1, step \d.*smaller --learning-rate") as caught:
        train(config(data, learning_rate=1e30), tmp_path / "out")
    assert "first in layer " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dense_training(data: Path, tmp_path: Path) -> None:
    train(config(data, gate=None, epochs=1), tmp_path / "dense")
    model, info = load_checkpoint(tmp_path / "dense")
    assert not gates_of(model)
    assert (info.gate, info.group_size) == (None, None)
    assert "test_mac_cut" not in info.history[-1]


def test_images_of_another_size(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(1, 28, 28\), the network takes \(3, 32, 32\)"):
        train(config(data, network="resnet20"), tmp_path / "out")


def test_fewer_images_than_one_batch(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="48 images are fewer than one batch"):
        train(config(data, batch_size=64), tmp_path / "out")


def test_a_batch_of_one_image_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch norm needs 2 images or more in each process"):
        train(config(data, batch_size=1), tmp_path / "checkpoint")


def test_gradients_reach_every_gate(data: Path, tmp_path: Path) -> None:
    trainer = _Trainer(config(data), tmp_path / "out", resume=False)
    images = torch.rand(8, 1, 28, 28)
    trainer.model.train()
    trainer._step(images, torch.arange(8), done=0.3)
    for name, gate in gates_of(trainer.model).items():
        for parameter in gate.parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
    assert expected_mac_fraction(trainer.model, trainer.plan).requires_grad


def test_gates_stay_open_in_the_warm_up(data: Path, tmp_path: Path) -> None:
    trainer = _Trainer(config(data), tmp_path / "out", resume=False)
    trainer.model.train()
    seen = []
    for gate in gates_of(trainer.model).values():
        gate.register_forward_hook(lambda gate, *_: seen.append(gate.mode))
    trainer._step(torch.rand(8, 1, 28, 28), torch.arange(8), done=0.0)
    assert set(seen) == {"open"}
    assert all(gate.conv.weight.grad is None for gate in gates_of(trainer.model).values())


def test_floor_loss(data: Path, tmp_path: Path) -> None:
    trainer = _Trainer(config(data), tmp_path / "out", resume=False)
    first, second, *others = gates_of(trainer.model).values()
    first.switches = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # a quarter open
    second.switches = torch.zeros(2, 2)
    for gate in others:
        gate.switches = torch.ones(2, 2)
    assert floor_loss(trainer.model, 0.3).item() == pytest.approx(0.05**2 + 0.3**2)


def test_learning_rate_is_one_cycle() -> None:
    factors = [learning_rate_factor(done) for done in np.linspace(0, 1, 101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[20] == max(factors) == 1.0
    assert factors[100] == pytest.approx(0.0)
    assert all(a < b for a, b in zip(factors[:20], factors[1:21], strict=True))
    assert all(a > b for a, b in zip(factors[20:100], factors[21:], strict=True))
