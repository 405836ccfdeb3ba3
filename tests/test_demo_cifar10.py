# SPDX-License-Identifier: Apache-2.0
"""The demo's second part, on random images in CIFAR-10's format; and what ships for it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tvm_dynprune.demo_cifar10 import NETWORK, POINTS, run_cifar10
from tvm_dynprune.errors import DataError
from tvm_dynprune.files import shipped
from tvm_dynprune.nn.checkpoint import load_checkpoint
from tvm_dynprune.nn.config import ACCURATE_THRESHOLD
from tvm_dynprune.report import read_measurement
from tvm_dynprune.runtime import Artifact
from tvm_dynprune.runtime.artifact import OperatingPoint, read_points

DEMO = shipped("demo") / "cifar10"


def write_batch(folder: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    records = random.integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(count) % 10
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    (folder / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(records.tobytes())
    return folder


def test_measures_each_operating_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_dynprune.demo_cifar10.TIMED", 6)
    data = write_batch(tmp_path / "data", 8)
    results = run_cifar10(tmp_path / "out", data)
    points = read_points(DEMO / POINTS)
    assert [result["point"] for result in results] == list(points)
    assert Artifact.load(tmp_path / "out" / "cifar10" / "artifact").manifest.points == points
    for result in results:
        assert (result["split"], result["images_all"], result["images"]) == ("test", 8, 6)
        written = tmp_path / "out" / "cifar10" / f"{result['point']}.json"
        assert read_measurement(written).images == 6
    # The cheaper the point, the higher its thresholds.
    cuts = {result["point"]: result["mac_cut"] for result in results}
    assert cuts["accurate"] <= cuts["balanced"] <= cuts["fast"]


def test_a_folder_without_cifar10_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run_cifar10(tmp_path / "out", tmp_path)


def last_record(run: str) -> dict:
    return json.loads((DEMO / f"train_{run}.jsonl").read_text().splitlines()[-1])


def test_the_shipped_network_is_the_one_of_the_logs() -> None:
    """The compiled sweep at the trained thresholds says what the training's last line does."""
    table = json.loads((DEMO / POINTS).read_text())["sweep"]
    sweep = {point["threshold_shift"]: OperatingPoint(**point) for point in table}
    last = last_record("gated")
    for prefix, shift in (("validation_", 0.0), ("validation_accurate_", ACCURATE_THRESHOLD)):
        point = sweep[shift]
        assert point.images == 5000
        assert abs(point.accuracy - last[f"{prefix}accuracy"]) <= 2 / 5000
        assert abs(1 - point.mac_fraction - last[f"{prefix}mac_cut"]) <= 1e-3


def test_what_ships_is_small_and_the_dense_network_good() -> None:
    assert last_record("dense")["validation_accuracy"] >= 0.93
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 13e6
    assert (DEMO / NETWORK).stat().st_size <= 10e6


def test_the_dense_checkpoint_can_be_started_from() -> None:
    model, info = load_checkpoint(DEMO / "dense")
    assert (info.network, info.gate) == ("compact_vgg", None)
    assert info.history[-1] == last_record("dense")
    assert all(p.dtype == torch.float32 for p in model.parameters())
