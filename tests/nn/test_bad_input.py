# SPDX-License-Identifier: Apache-2.0
"""What `train` says of input that it cannot train on: one line, exit status 2, nothing written."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.nn.util import write_data
from tvm_dynprune.cli import main


def change_labels(folder: Path, value: int) -> Path:
    path = folder / "train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[8:] = bytes([value]) * (len(content) - 8)
    path.write_bytes(content)
    return folder


def mixed_sizes(folder: Path) -> Path:
    for name, size in (("cat", 28), ("dog", 30)):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.zeros((size, size), np.uint8)).save(folder / name / "0.png")
    return folder


def train_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> str:
    """Run `train` and return the one line that it ends with."""
    monkeypatch.setattr(sys, "argv", ["tvm-dynprune", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--budget 0", "--budget 0.0: a share of the dense network, above 0 and at most 1"),
        ("--budget 1.5", "--budget 1.5: a share"),
        ("--budget -0.1", "--budget -0.1: a share"),
        ("--budget nan", "--budget nan: a share"),
        ("--group-size 12", "features.3: group size 12 does not divide its 32 channels"),
        ("--batch-size 64", "48 images are fewer than one batch"),
        ("--model alexnet", "no network 'alexnet'"),
        ("--model resnet20", "(1, 28, 28), the network takes (3, 32, 32)"),
        ("--gate wide", "no gate 'wide'"),
        ("--device cuda", "finds no GPU here"),
        ("--device tpu", "cpu, cuda, cuda:N or auto"),
    ],
)
def test_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data, out = write_data(tmp_path / "mnist"), tmp_path / "out"
    command = ["--data", data, "--out", out, "--batch-size", "8", *options.split()]
    assert message in train_line(monkeypatch, capsys, *command)
    assert not out.exists()


def test_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "label 10 in the train split, but only 10 classes": change_labels(
            write_data(tmp_path / "labels"), 10
        ),
        "all training images are of one class": write_data(tmp_path / "one", classes=1),
        "image is 30x30 grey, the ones before it are 28x28": mixed_sizes(tmp_path / "mixed"),
    }
    for message, data in cases.items():
        out = tmp_path / "out"
        line = train_line(monkeypatch, capsys, "--data", data, "--out", out, "--batch-size", "8")
        assert message in line
        assert not out.exists()
