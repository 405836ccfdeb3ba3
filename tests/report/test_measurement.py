# SPDX-License-Identifier: Apache-2.0
"""Reading measurement files: what is right comes out whole, what is wrong is named on one line."""

import copy
import json

import pytest

from tests.report.samples import CLASSES, make_bench, make_calibration, make_run
from tvm_dynprune.errors import DataError
from tvm_dynprune.report.measurement import (
    Bench,
    Calibration,
    Gate,
    Run,
    read_measurement,
    summarise_classes,
)

OPTIONAL = [
    "labels", "accuracy", "latency_dense_ms", "realised_fraction", "max_abs_error", "agreement",
    "points",
]  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(data) -> Run | Bench | Calibration:
        path = tmp_path / "m.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return read_measurement(path)

    return write


def test_a_run_is_read_whole(write):
    data = make_run(images=7)
    run = write(data)
    assert isinstance(run, Run)
    assert run.latency_ms == data["latency_ms"]
    assert run.gates[1] == Gate(**data["gates"][1])
    assert run.agreement is not None
    assert run.agreement.equal == 7
    assert run.provenance.seed == 0


def test_a_bench_is_read_whole(write):
    bench = write(make_bench())
    assert isinstance(bench, Bench)
    assert bench.engines["ncnn"].median_ms == 14.6
    assert bench.speedup_vs_best_peer == 4.71


def test_a_calibration_is_read_whole(write):
    data = make_calibration()
    calibration = write(data)
    assert isinstance(calibration, Calibration)
    assert len(calibration.sweep) == len(data["sweep"])
    assert calibration.points["fast"].mac_cut == 1 - data["points"]["fast"]["mac_fraction"]


def swept(**changes: object) -> dict:
    data = make_calibration()
    data["sweep"] = [{**data["sweep"][0], **changes}]
    return data


@pytest.mark.parametrize("absent", ["null", "missing"])
def test_optional_fields_may_be_null_or_missing(write, absent):
    data = make_run(images=3)
    for name in OPTIONAL:
        if absent == "null":
            data[name] = None
        else:
            del data[name]
    run = write(data)
    assert all(getattr(run, name) is None for name in OPTIONAL)


def test_fields_of_later_versions_are_ignored(write):
    assert isinstance(write({**make_run(images=3), "energy_mj": [1]}), Run)


def changed(path: str, value: object) -> dict:
    data = copy.deepcopy(make_run(images=3))
    *folders, last = path.split("/")
    inner = data
    for folder in folders:
        inner = inner[int(folder) if folder.isdigit() else folder]
    inner[last] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not a JSON file"),
        ("[1]", "not a measurement"),
        ('"run"', "not a measurement"),
        ({"kind": "tune"}, "not a measurement"),
        ({"kind": ["run"]}, "not a measurement"),
        ({"kind": "run"}, "network is missing"),
        ({**make_bench(), "engines": {}}, "engines is empty"),
        (changed("images", "3"), "images = 3 is not of type int"),
        (changed("images", 4), "predictions has 3 values for 4 images"),
        (changed("threads", 1.5), r"threads = 1\.5 is not of type int"),
        (changed("threads", True), "threads = True is not of type int"),
        (changed("mac_cut", None), "mac_cut = None is not of type float"),
        (
            changed("latency_ms", [1, float("nan"), 2]),
            r"latency_ms\[1\] = nan is not of type float",
        ),
        (changed("latency_dense_ms", []), "latency_dense_ms is empty"),
        (changed("labels", [0, 1, 99]), "labels has a class beyond the 5 in classes"),
        (changed("labels", [0, -1, 2]), "labels has a class beyond the 5 in classes"),
        (changed("gates/0/groups", 5), r"features\.0\.conv: open_fraction_by_group has not 5"),
        (changed("gates/0/open_fraction_by_class", [1]), "is not one per class"),
        (changed("threads", 10**400), "threads = 10+ is not of type int"),
        (changed("soc", "\ud800"), "soc = .* is not of type str"),
        ({**make_calibration(), "sweep": []}, "sweep is empty"),
        ({**make_calibration(), "points": None}, "points = None is not of type dict"),
        (swept(accuracy=93.2), r"sweep\[0\]\.accuracy = 93\.2 is not a fraction"),
        (swept(mac_fraction=-0.1), r"sweep\[0\]\.mac_fraction = -0\.1 is negative"),
        (changed("provenance/machine", 3), r"provenance\.machine = 3 is not of type str"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_and_field(write, data, message):
    with pytest.raises(DataError, match=message) as caught:
        write(data)
    assert "m.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_measurement(tmp_path / "none.json")
    (tmp_path / "library.so").write_bytes(b"\x7fELF\xff\xfe")
    with pytest.raises(DataError, match=r"library\.so: not a JSON file"):
        read_measurement(tmp_path / "library.so")


def test_classes_are_summarised_cheapest_first(write):
    data = make_run(images=4)
    data |= {"labels": [2, 0, 2, 0], "predictions": [2, 1, 2, 0]}
    data |= {"macs": [10, 40, 20, 60], "latency_ms": [1, 4, 3, 6]}
    data |= {"open_fraction": [0.1, 0.4, 0.3, 0.6]}
    easy, hard = summarise_classes(write(data))
    assert (easy.name, easy.images, easy.accuracy, easy.macs) == (CLASSES[2], 2, 1.0, 15)
    assert (hard.name, hard.accuracy, hard.median_cost) == (CLASSES[0], 0.5, 5)
    assert easy.open_fraction == pytest.approx(0.2)


def test_without_labels_classes_are_the_predicted_ones(write):
    data = make_run(images=3)
    data |= {"labels": None, "predictions": [1, 1, 4]}
    summaries = {one.name: one for one in summarise_classes(write(data))}
    assert summaries.keys() == {CLASSES[1], CLASSES[4]}
    assert summaries[CLASSES[1]].accuracy is None
