# SPDX-License-Identifier: Apache-2.0
"""Accuracy against MAC cut: what each curve is counted from."""

from dataclasses import replace
from typing import Any

import pytest

from tests.report.samples import make_calibration, make_checkpoint, make_run
from tvm_dynprune.report.fields import convert
from tvm_dynprune.report.measurement import Calibration, Run
from tvm_dynprune.report.records import read_records
from tvm_dynprune.report.tradeoff import gather, is_same_network
from tvm_dynprune.report.training import Training


def training(name: str = "t", **changes: Any) -> Training:
    return convert(Training, {**make_checkpoint(**changes), "name": name})


def calibration(network: str = "compact_vgg_lkam") -> Calibration:
    return convert(Calibration, make_calibration(network))


def run(**changes: Any) -> Run:
    return convert(Run, make_run(images=10) | {"network": "compact_vgg_lkam"} | changes)


def test_a_training_is_counted_from_the_dense_one_of_its_network():
    (curve,) = gather([training(), training("dense", gate=None)]).curves
    assert curve.baseline is not None
    assert curve.baseline.name == "compact_vgg, dense"
    assert curve.baseline.accuracy == 0.9412
    lowered, last = curve.settings
    assert (lowered.mac_cut, last.mac_cut) == (0.52, 0.72)
    assert curve.baseline.change(last.accuracy) == pytest.approx(100 * (last.accuracy - 0.9412))


def test_the_most_accurate_dense_training_is_the_baseline_and_others_are_drawn_below():
    better, worse = training("better", gate=None), training("worse", gate=None, epochs=9)
    worse.history[-1] = replace(worse.last, validation_accuracy=0.9312)
    tradeoff = gather([worse, better])
    assert tradeoff.dense["compact_vgg, dense (better)"] == 0
    assert tradeoff.dense["compact_vgg, dense (worse)"] == pytest.approx(-1)


def test_a_calibration_keeps_its_names_and_joins_those_of_one_point():
    one = calibration()
    one.points["balanced"] = one.points["accurate"]
    (curve,) = gather([one, training(gate=None)]).curves
    assert [setting.name for setting in curve.marked] == ["accurate, balanced", "fast"]
    assert curve.baseline is not None
    assert curve.baseline.accuracy == 0.9412
    cuts = [setting.mac_cut for setting in curve.settings]
    assert cuts == sorted(cuts)


def test_without_a_dense_training_the_most_accurate_setting_is_the_baseline():
    dense = training(gate=None)
    for one in (calibration("other"), run(network="other")):
        (curve,) = gather([one, dense]).curves
        assert curve.baseline is not None
        assert curve.baseline.accuracy == max(setting.accuracy for setting in curve.settings)


def test_runs_are_counted_on_the_images_they_ran():
    dense = training(gate=None)
    (test,) = gather([run(points=[]), dense]).curves
    (validation,) = gather([run(points=[], split="validation"), dense]).curves
    assert test.baseline is not None
    assert test.baseline.accuracy == 0.9404
    assert validation.baseline is not None
    assert validation.baseline.accuracy == 0.9412


def test_a_single_setting_has_nothing_to_be_counted_from():
    (curve,) = gather([run(points=[])]).curves
    assert curve.baseline is None
    assert gather([run(accuracy=None)]).curves == []


@pytest.mark.parametrize(
    ("artifact", "trained", "same"),
    [
        ("compact_vgg", "compact_vgg", True),
        ("compact_vgg_lkam", "compact_vgg", True),
        ("resnet20", "resnet2", False),
        ("model", "compact_vgg", False),
        (None, None, False),
    ],
)
def test_artifacts_are_named_after_model_files(artifact, trained, same):
    assert is_same_network(artifact, trained) is same


def test_records_are_complete_and_their_sources_public():
    records = read_records()
    assert len(records.record) == 10
    for record in records.record:
        assert record.source.startswith(("https://arxiv.org/abs/", "https://github.com/"))
        assert 50 < record.mac_cut < 80
        assert -1.3 < record.change < 0.4
    assert len(records.data_set.classes) == 10
