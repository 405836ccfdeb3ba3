# SPDX-License-Identifier: Apache-2.0
"""Reading trainings: folders, their JSON and logs alone; what is wrong is named on one line."""

import json

import pytest

from tests.report.samples import make_calibration, make_checkpoint, make_history
from tvm_dynprune.errors import DataError
from tvm_dynprune.report.inputs import read_input
from tvm_dynprune.report.measurement import Calibration
from tvm_dynprune.report.training import Training


def as_lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "gated"
    folder.mkdir()
    (folder / "checkpoint.json").write_text(json.dumps(make_checkpoint()))
    (folder / "log.jsonl").write_text(as_lines(make_history()))
    return folder


@pytest.mark.parametrize("name", ["", "checkpoint.json"])
def test_a_folder_and_its_json_are_the_same_training(folder, name):
    training = read_input(folder / name)
    assert isinstance(training, Training)
    assert training.title == "compact_vgg, lkam in groups of 16 (gated)"
    assert not training.is_dense
    assert len(training.history) == 18
    assert training.training is not None
    assert training.training.accurate_budget == 0.48
    assert training.last.gates == make_history()[-1]["gates"]


def test_a_log_alone_is_named_by_its_file_or_its_folder(folder):
    (folder / "train_gated.jsonl").write_text(as_lines(make_history()))
    assert read_input(folder / "log.jsonl").title == "gated"
    assert read_input(folder / "train_gated.jsonl").title == "train_gated"


def test_a_dense_training_is_known(tmp_path):
    path = tmp_path / "checkpoint.json"
    path.write_text(json.dumps(make_checkpoint(gate=None)))
    assert read_input(path).is_dense


def test_an_old_log_lacks_what_it_lacks(tmp_path):
    path = tmp_path / "old.jsonl"
    path.write_text(as_lines(make_history(old=True)))
    last = read_input(path).last
    assert last.gates is None
    assert last.validation_open_fraction is None
    assert last.validation_mac_cut == 0.72


def test_a_later_line_replaces_its_epoch(tmp_path):
    history = make_history(epochs=3)
    path = tmp_path / "log.jsonl"
    path.write_text(as_lines([*history, history[-1] | {"test_accuracy": 0.93}]) + "\n")
    training = read_input(path)
    assert [epoch.epoch for epoch in training.history] == [1, 2, 3]
    assert training.last.test_accuracy == 0.93


def test_measurements_are_still_told_apart(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(make_calibration() | {"history": []}))
    assert isinstance(read_input(path), Calibration)


def changed(**changes: object) -> dict:
    data = make_checkpoint(epochs=2)
    data["history"][1] |= changes
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"history": []}, "network is missing"),
        ({**make_checkpoint(), "history": []}, "history is empty"),
        ({**make_checkpoint(), "history": {}}, "history = {} is not of type list"),
        ({**make_checkpoint(), "training": 3}, "training = 3 is not of type Options"),
        (changed(loss=None), r"history\[1\]\.loss = None is not of type float"),
        (changed(loss=float("nan")), r"history\[1\]\.loss = nan is not of type float"),
        (changed(epoch=0), r"history\[1\]\.epoch = 0 is not 1 or more"),
        (
            changed(validation_accuracy=93.1),
            r"history\[1\]\.validation_accuracy = 93\.1 is not a fraction",
        ),
        (changed(gates={"a": "b"}), r"history\[1\]\.gates\.a = b is not of type float"),
        (changed(gates={"a": 1.5}), r"history\[1\]\.gates\.a = 1\.5 is not a fraction"),
        (changed(gates=[0.5]), r"history\[1\]\.gates = \[0\.5\] is not of type dict"),
    ],
)
def test_a_wrong_checkpoint_is_one_line_with_file_and_field(tmp_path, data, message):
    (tmp_path / "checkpoint.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=message) as caught:
        read_input(tmp_path / "checkpoint.json")
    assert "checkpoint.json: not a" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"epoch": 2, "lo', "line 2: not a JSON file"),
        ("[1]", "line 2: not an epoch of a training: the file = "),
        ('{"epoch": 2}', "line 2: not an epoch of a training: loss is missing"),
    ],
)
def test_a_damaged_log_is_one_line_with_its_place(tmp_path, line, message):
    path = tmp_path / "log.jsonl"
    path.write_text(as_lines(make_history(epochs=1)) + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        read_input(path)
    assert "log.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_log_and_a_folder_that_is_no_checkpoint_are_one_line(tmp_path):
    (tmp_path / "log.jsonl").write_text("\n")
    with pytest.raises(DataError, match="history is empty"):
        read_input(tmp_path / "log.jsonl")
    with pytest.raises(DataError, match="train` writes a checkpoint's folder"):
        read_input(tmp_path)
    (tmp_path / "checkpoint.json").write_text("[]")
    with pytest.raises(DataError, match="not a checkpoint's JSON"):
        read_input(tmp_path)
