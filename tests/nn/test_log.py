# SPDX-License-Identifier: Apache-2.0
"""The logs of a training: JSON lines, a table, TensorBoard; no epoch is in them twice."""

import csv
import errno
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.nn.test_train import stop_at
from tests.nn.util import config, write_data
from tvm_dynprune.errors import CheckpointError, ToolError, UserError
from tvm_dynprune.nn import log as log_module
from tvm_dynprune.nn.checkpoint import LOG, read_info
from tvm_dynprune.nn.log import LOG_CSV, TENSORBOARD, TrainingLog
from tvm_dynprune.nn.train import train

RECORD = {"loss": 1.5, "validation_accuracy": 0.5, "gates": {"gates.stem": 0.25}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "mnist")


class SummaryWriter:
    """Keeps what is written to it, in a file of its folder as the real one does."""

    def __init__(self, folder: str) -> None:
        Path(folder).mkdir(parents=True)
        self.file = Path(folder) / "events"

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        with self.file.open("a") as stream:
            stream.write(f"{step} {tag} {value}\n")

    def flush(self) -> None:
        pass


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were installed."""
    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(log_module, "find_spec", lambda name: name)


def test_what_is_written(tmp_path: Path, tensorboard: None) -> None:
    log = TrainingLog(tmp_path, tensorboard=True)
    history = [{"epoch": 1, **RECORD}]
    log.write(history)
    history.append({"epoch": 2, **RECORD})
    log.write(history)
    history[1] = {**history[1], "test_accuracy": 0.75}  # the last epoch's second record
    log.write(history)
    lines = (tmp_path / LOG).read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert (tmp_path / LOG_CSV).read_text().splitlines() == [
        "epoch,loss,validation_accuracy,test_accuracy",
        "1,1.5,0.5,",
        "2,1.5,0.5,0.75",
    ]
    scalars = ("loss 1.5", "validation_accuracy 0.5", "gates/stem 0.25")
    assert (tmp_path / TENSORBOARD / "events").read_text().splitlines() == [
        *(f"{epoch} {scalar}" for epoch in (1, 2) for scalar in scalars),
        "2 test_accuracy 0.75",
    ]


def test_no_epoch_is_doubled_after_a_resume(
    data: Path, tmp_path: Path, tensorboard: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(patch, 6 + 2)
        with pytest.raises(UserError, match="interrupted in epoch 2"):
            train(config(data), out, tensorboard=True)
    train(config(data), out, tensorboard=True, resume=True)
    history = read_info(out).history
    lines = (out / LOG).read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    with (out / LOG_CSV).open(newline="") as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["1", "2"]
    events = (out / TENSORBOARD / "events").read_text().splitlines()
    tags = [line.rsplit(" ", 1)[0] for line in events]
    assert len(tags) == len(set(tags))
    assert {f"{epoch} validation_mac_cut" for epoch in (1, 2)} <= set(tags)
    assert any(tag.startswith("2 gates/features") for tag in tags)


def test_a_torn_log_is_mended(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(patch, 6 + 2)
        with pytest.raises(UserError):
            train(config(data), out)
    (out / LOG).write_text('{"epoch": 1, "lo')
    train(config(data), out, resume=True)
    lines = (out / LOG).read_text().splitlines()
    assert [json.loads(line) for line in lines] == read_info(out).history


def test_without_tensorboard(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "find_spec", lambda name: None)
    with pytest.raises(ToolError, match="--tensorboard needs tensorboard: pip install tensorboard"):
        train(config(data), tmp_path / "out", tensorboard=True)
    assert not (tmp_path / "out").exists()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log_module, "_write_csv", full)
    with pytest.raises(CheckpointError, match="No space left.*epoch 1 is whole: make room"):
        TrainingLog(tmp_path).write([{"epoch": 1, **RECORD}])
