# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: the round trip, and one clear line for each that cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tvm_dynprune.errors import CheckpointError
from tvm_dynprune.nn.average import WeightAverage
from tvm_dynprune.nn.checkpoint import (
    INFO,
    RESUME,
    WEIGHTS,
    CheckpointInfo,
    load_checkpoint,
    load_resume_state,
    save_checkpoint,
)
from tvm_dynprune.nn.gates import gates_of, set_thresholds


def info(**changes: Any) -> CheckpointInfo:
    fields: dict[str, Any] = {
        "network": "fashion_cnn",
        "classes": ["a", "b", "c"],
        "mean": [0.25],
        "std": [0.5],
        "gate": "lkam",
        "group_size": 16,
        "training": {},
    }
    return CheckpointInfo(**(fields | changes))


def saved(folder: Path, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    made = info(**changes)
    model = made.build().eval()
    momentum = {"features.0.weight": torch.ones(32, 1, 3, 3)}
    save_checkpoint(folder, model, made, momentum, WeightAverage(model, 0.0))
    return model


@pytest.mark.parametrize("gate", [{}, {"gate": None, "group_size": None}])
def test_round_trip(tmp_path: Path, gate: dict[str, None]) -> None:
    model = saved(tmp_path, **gate)
    set_thresholds(model, 0.125)
    again = load_resume_state(tmp_path)
    average = WeightAverage(model, 0.0)
    save_checkpoint(tmp_path, model, info(**gate), again.momentum, average)
    loaded, read = load_checkpoint(tmp_path)
    assert read == info(**gate)
    assert not loaded.training
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert loaded(x).shape == (2, 3)
    assert {g.threshold.item() for g in gates_of(loaded).values()} <= {0.125}
    buffers = dict(loaded.named_buffers())
    assert buffers["normalise.mean"].item() == 0.25
    assert load_resume_state(tmp_path).momentum["features.0.weight"].sum() == 32 * 9


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def change_info(folder: Path, **changes: Any) -> None:
    table = json.loads((folder / INFO).read_text())
    (folder / INFO).write_text(json.dumps(table | changes))


def change_weights(folder: Path, name: str, value: torch.Tensor | None) -> None:
    weights = load_file(folder / WEIGHTS)
    weights.pop(name, None)
    if value is not None:
        weights[name] = value
    save_file(weights, folder / WEIGHTS)


def test_no_checkpoint(tmp_path: Path) -> None:
    assert_refused(tmp_path, r"no checkpoint \(no checkpoint\.json\)")
    assert_refused(tmp_path / "nowhere", "no checkpoint")
    (tmp_path / "file").write_text("a file")
    assert_refused(tmp_path / "file", "no checkpoint")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b"{}", b"\xff\xfe\x00", b'"a"']
)
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    saved(tmp_path)
    (tmp_path / INFO).write_bytes(content)
    assert_refused(tmp_path, r"checkpoint\.json: damaged")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 7}, "format 7, this version reads 1"),
        ({"network": "alexnet"}, "'alexnet' is not one of fashion_cnn"),
        ({"surprise": 1}, "damaged .*surprise"),
        ({"mean": [0.1, 0.2, 0.3]}, "damaged"),
        ({"classes": 3}, "damaged"),
        ({"group_size": 7}, "damaged"),
        ({"group_size": "8"}, "damaged"),
        ({"gate": "other"}, "damaged"),
        ({"network": ["fashion_cnn"]}, "is not one of fashion_cnn"),
    ],
)
def test_json_that_says_something_else(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    saved(tmp_path)
    change_info(tmp_path, **changes)
    assert_refused(tmp_path, message)


def test_weights_of_another_network(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b", network="resnet20", mean=[0.0] * 3, std=[1.0] * 3)
    (tmp_path / "b" / WEIGHTS).replace(tmp_path / "a" / WEIGHTS)
    assert_refused(tmp_path / "a", "features.0.weight is missing: another network's weights")


def test_weights_with_another_group_size_or_without_gates(tmp_path: Path) -> None:
    saved(tmp_path)
    change_info(tmp_path, group_size=8)
    assert_refused(tmp_path, r"gates\.features_3\.conv\.weight has shape \(2, .*\(4, ")
    change_info(tmp_path, gate=None)
    assert_refused(tmp_path, r"gates\.features_10\.conv\.bias is no part of the network")


def test_tensors_missing_of_another_shape_or_unknown(tmp_path: Path) -> None:
    saved(tmp_path)
    change_weights(tmp_path, "classifier.bias", torch.zeros(4))
    assert_refused(tmp_path, r"classifier\.bias has shape \(4,\), the network \(3,\)")
    change_weights(tmp_path, "classifier.bias", None)
    assert_refused(tmp_path, r"classifier\.bias is missing")
    change_weights(tmp_path, "classifier.bias", torch.zeros(3))
    change_weights(tmp_path, "extra", torch.zeros(3))
    assert_refused(tmp_path, "extra is no part of the network")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["features.4.running_var", "gates.features_10.conv.weight"])
def test_weights_that_are_not_finite(tmp_path: Path, name: str, value: float) -> None:
    saved(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weights[name].flatten()[1] = value
    save_file(weights, tmp_path / WEIGHTS)
    assert_refused(tmp_path, rf"weights\.safetensors: {name} holds NaN or infinity")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(tmp_path: Path, keep: int) -> None:
    saved(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:keep])
    assert_refused(tmp_path, r"weights\.safetensors: not a readable safetensors file")


def test_missing_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    assert_refused(tmp_path, r"weights\.safetensors: not a readable")
    (tmp_path / RESUME).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"resume\.safetensors"):
        load_resume_state(tmp_path)


def test_interrupted_while_writing_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(_tensors: object, path: Path, _metadata: object = None) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("tvm_dynprune.nn.checkpoint.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, model, info(epoch=3), {}, WeightAverage(model, 0.0))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
