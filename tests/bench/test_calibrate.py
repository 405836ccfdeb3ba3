# SPDX-License-Identifier: Apache-2.0
"""Operating points: measured over thresholds, chosen by rule, kept in the artifact."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.test_cli import assert_one_line, run, run_here
from tvm_dynprune.bench.calibrate import choose_points, choose_within, sweep_thresholds
from tvm_dynprune.data import LabelledImages
from tvm_dynprune.errors import ArtifactError, UserError
from tvm_dynprune.runtime import Artifact, Session
from tvm_dynprune.runtime.artifact import OperatingPoint, read_points, store_points
from tvm_dynprune.runtime.macs import dense_macs

SWEEP = [
    OperatingPoint(-2.0, 0.940, 0.60, 1000),
    OperatingPoint(-1.0, 0.941, 0.45, 1000),
    OperatingPoint(0.0, 0.936, 0.30, 1000),
    OperatingPoint(1.0, 0.910, 0.15, 1000),
]


@pytest.fixture
def copied(artifact: Artifact, tmp_path: Path) -> Artifact:
    """The artifact in a folder that the test may change."""
    shutil.copytree(artifact.path, tmp_path / "artifact")
    return Artifact.load(tmp_path / "artifact")


def labelled(artifact: Artifact, images: np.ndarray) -> LabelledImages:
    """Images with the labels that the network itself gives them, all gates open."""
    pixels = np.clip(images * 255, 0, 255).astype(np.uint8)
    session = Session(artifact)
    session.set_thresholds(-100.0)
    labels = session.run(pixels.astype(np.float32) / np.float32(255)).argmax(1)
    return LabelledImages(pixels, labels, tuple(artifact.manifest.classes))


def test_each_name_is_the_cheapest_within_its_drop() -> None:
    chosen = choose_points(SWEEP, {"a": 0.1, "b": 0.5, "c": 3.1})
    assert {name: point.threshold_shift for name, point in chosen.items()} == {
        "a": -1.0,
        "b": 0.0,
        "c": 1.0,
    }


def test_the_most_accurate_within_a_cost() -> None:
    assert choose_within(SWEEP, 0.45).threshold_shift == -1.0
    assert choose_within(SWEEP, 0.44).threshold_shift == 0.0
    with pytest.raises(UserError, match=r"cheapest point executes 0\.150 .*smaller --budget"):
        choose_within(SWEEP, 0.1)


def test_sweep_is_what_a_session_with_these_thresholds_does(
    artifact: Artifact, images: np.ndarray
) -> None:
    data = labelled(artifact, images)
    sweep = sweep_thresholds(artifact, data, shifts=(100.0, 0.0, -100.0))
    assert [point.threshold_shift for point in sweep] == [-100.0, 0.0, 100.0]
    assert sweep[0].accuracy == 1.0
    assert sweep[0].mac_fraction >= sweep[1].mac_fraction > sweep[2].mac_fraction
    session = Session(artifact)
    predicted = session.run(data.images.astype(np.float32) / np.float32(255)).argmax(1)
    assert sweep[1].accuracy == pytest.approx((predicted == data.labels).mean())
    dense = dense_macs(artifact.manifest.dense_layers)
    assert sweep[1].mac_fraction == pytest.approx(session.macs.mean() / dense)


def test_stored_points_are_used_without_recompiling(copied: Artifact, images: np.ndarray) -> None:
    library = copied.library.read_bytes()
    stored = store_points(copied, {"all": SWEEP[0], "none": OperatingPoint(100.0, 0.1, 0.01, 9)})
    assert stored.manifest == Artifact.load(copied.path).manifest
    session = Session(Artifact.load(copied.path))
    before = session.run(images)
    session.use("none")
    session.run(images)
    assert not any(decided.any() for decided in session.open_channels)
    session.use("all")
    own = Session(copied).threshold_values
    np.testing.assert_allclose(session.threshold_values, own - 2.0)
    session.set_threshold_values(own)
    np.testing.assert_array_equal(session.run(images), before)
    assert copied.library.read_bytes() == library


def test_unknown_point(copied: Artifact) -> None:
    with pytest.raises(UserError, match=r"no operating point 'fast': .* calibrate` makes them"):
        Session(copied).use("fast")
    stored = store_points(copied, {"slow": SWEEP[0]})
    with pytest.raises(UserError, match="no operating point 'fast': .* has slow"):
        Session(stored).use("fast")


@pytest.mark.parametrize("text", ["", "{}", '{"points": {"a": {}}}', '{"points": []}'])
def test_file_without_points(tmp_path: Path, text: str) -> None:
    (tmp_path / "points.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"points\.json: no operating points"):
        read_points(tmp_path / "points.json")


def test_command_line(copied: Artifact, class_folders: Path, tmp_path: Path) -> None:
    """Calibrate one artifact, hand its points to another, and run at one of them."""
    out = tmp_path / "calibration.json"
    options = ["--data", class_folders, "--split", "test", "--max-macs", "0.9", "--json", out]
    made = run("calibrate", copied.path, *options)
    assert made.returncode == 0, made.stderr
    assert "balanced" in made.stdout
    result = json.loads(out.read_text())
    assert set(result["points"]) == {"fast", "balanced", "accurate", "custom"}
    assert result["points"]["custom"]["mac_fraction"] <= 0.9
    other = tmp_path / "other"
    shutil.copytree(copied.path, other)
    store_points(Artifact.load(other), {})
    assert run("calibrate", other, "--points", out).returncode == 0
    assert set(Artifact.load(other).manifest.points) == set(result["points"])
    image = class_folders / "test" / "ant" / "0.png"
    measured = run("run", other, "--image", image, "--point", "fast", "--json", "-")
    assert json.loads(measured.stdout)["point"] == "fast"


def test_mistakes(copied: Artifact, class_folders: Path) -> None:
    where = copied.path
    assert_one_line(run_here("calibrate", where), "--data DIR or --points FILE")
    data = ["--data", class_folders]
    assert_one_line(
        run_here("calibrate", where, *data, "--split", "all"), "--split all: test, train"
    )
    assert_one_line(
        run_here("calibrate", where, *data, "--max-macs", "1.5"), "above 0 and at most 1"
    )
    assert_one_line(run_here("run", where, *data, "--point", "fast"), "no operating point 'fast'")
    both = [*data, "--point", "fast", "--threshold", "0"]
    assert_one_line(run_here("run", where, *both), "give one")
