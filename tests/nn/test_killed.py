# SPDX-License-Identifier: Apache-2.0
"""What happens to a training from outside: kill -9, a full disk."""

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.nn.test_train import assert_same_checkpoint
from tests.nn.util import write_data
from tvm_dynprune.nn import checkpoint
from tvm_dynprune.nn.checkpoint import INFO, read_info

EPOCHS = 6


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests run beside these: threads of a training would wait for each other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def command(data: Path, out: Path, *more: str) -> list[str]:
    options = (
        f"--group-size 16 --epochs {EPOCHS} --batch-size 8 --average 0.9 --accurate-budget 0.6"
    )
    paths = ["--data", str(data), "--out", str(out)]
    return [sys.executable, "-m", "tvm_dynprune", "train", *options.split(), *paths, *more]


def test_killed_and_resumed_ends_at_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL as soon as the second epoch is on disk, then --resume."""
    data = write_data(tmp_path / "mnist")
    subprocess.run(command(data, tmp_path / "whole"), check=True, capture_output=True)
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(data, killed), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not ((killed / INFO).is_file() and read_info(killed).epoch >= 2):
        assert process.poll() is None, "the training ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 2 <= read_info(killed).epoch < EPOCHS
    subprocess.run(command(data, killed, "--resume"), check=True, capture_output=True)
    assert_same_checkpoint(killed, tmp_path / "whole")


def test_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tvm_dynprune.cli import main

    data, out = write_data(tmp_path / "mnist"), tmp_path / "out"
    whole, calls = checkpoint.save_file, []

    def full(*arguments: object) -> None:
        calls.append(1)
        if len(calls) > 2:  # each epoch writes two files
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(sys, "argv", ["tvm-dynprune", *command(data, out)[3:]])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device" in error
    assert "the checkpoint of epoch 1 is whole" in error
    assert read_info(out).epoch == 1
    monkeypatch.setattr(checkpoint, "save_file", whole)
    subprocess.run(command(data, out, "--resume"), check=True, capture_output=True)
    assert read_info(out).epoch == EPOCHS
