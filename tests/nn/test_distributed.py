# SPDX-License-Identifier: Apache-2.0
"""One training in two processes: the same weights in both, one that writes, errors in both."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.nn.test_train import assert_same_checkpoint
from tests.nn.util import write_data
from tvm_dynprune.nn.checkpoint import LOG, load_checkpoint

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, "-m", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "mnist")


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote; see distributed_worker."""
    folder = tmp_path_factory.mktemp("trained")
    done = torchrun("tests.nn.distributed_worker", data, folder)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_weights_statistics_and_averages_are_the_same_in_both(folder: Path) -> None:
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in (0, 1))
    for a, b in zip(first.pop("average"), second.pop("average"), strict=True):
        assert torch.equal(a, b)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_one_of_them_writes(folder: Path) -> None:
    model, info = load_checkpoint(folder / "whole")
    assert not model.training
    lines = (folder / "whole" / LOG).read_text().splitlines()
    assert [json.loads(line) for line in lines] == info.history
    assert [record["epoch"] for record in info.history] == [1, 2]
    assert info.history[1]["test_accuracy"] >= 0
    assert not list((folder / "whole").glob(".*"))


def test_resumed_is_uninterrupted(folder: Path, seen: list[dict[str, Any]]) -> None:
    assert all("interrupted in epoch 2 of 2" in each["interrupted"] for each in seen)
    assert_same_checkpoint(folder / "parts", folder / "whole")


def test_gate_losses_are_those_of_the_whole_batch(seen: list[dict[str, Any]]) -> None:
    """Gradients averaged over two shares are those of one process with all images."""
    for name, (difference, largest) in seen[0]["gradients"].items():
        assert largest > 0, name
        assert difference <= 1e-5 * max(largest, 1e-3), name


def test_no_thread_of_the_group_is_left(seen: list[dict[str, Any]]) -> None:
    """One that still runs when Python ends may abort it."""
    for each in seen:
        assert not [name for name in each["threads"] if "gloo" in name]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("nan", "loss is nan in epoch 1, step 2, first in layer "),
        ("full", "No space left on device"),
        ("odd", "--batch-size 7: 2 processes cannot have equal shares of it"),
        ("one", "only the second process knows"),
        ("exists", "exists: choose another --out"),
    ],
)
def test_an_error_stops_both(seen: list[dict[str, Any]], error: str, message: str) -> None:
    assert message in seen[0][error]
    assert seen[0][error] == seen[1][error]


def test_command_line_says_an_error_once(data: Path, tmp_path: Path) -> None:
    options = "--epochs 1 --batch-size 8 --learning-rate 1e30 --device cpu".split()
    paths = ["--data", data, "--out", tmp_path / "out"]
    done = torchrun("tvm_dynprune", "train", *options, *paths)
    assert done.returncode != 0
    assert done.stderr.count("tvm-dynprune: loss is nan in epoch 1") == 1
    assert not (tmp_path / "out").exists()
