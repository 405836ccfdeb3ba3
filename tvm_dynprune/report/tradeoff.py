# SPDX-License-Identifier: Apache-2.0
"""Accuracy against MAC cut: trainings, calibrations and runs as curves over one dense baseline.

Networks differ in accuracy, so what is compared is the change against the dense network. That is
the most accurate dense training of the same network among the inputs: its validation accuracy for
trainings and calibrations, its test accuracy for runs (their ``split`` may say otherwise). Without
one it is the most accurate setting of the curve itself, or epoch of the training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm_dynprune.report.inputs import Input
from tvm_dynprune.report.measurement import Calibration, Run
from tvm_dynprune.report.plots import name_run
from tvm_dynprune.report.training import Training


@dataclass(frozen=True)
class Setting:
    """One setting of a network's thresholds; fractions between 0 and 1."""

    name: str
    mac_cut: float
    accuracy: float


@dataclass(frozen=True)
class Baseline:
    """The accuracy that changes are counted from, and whose it is."""

    name: str
    accuracy: float

    def change(self, accuracy: float) -> float:
        """Return `accuracy` against this one, in percentage points."""
        return 100 * (accuracy - self.accuracy)


@dataclass(frozen=True)
class Curve:
    """Settings of one network by MAC cut; `marked` are those with a name."""

    name: str
    settings: list[Setting]
    marked: list[Setting]
    baseline: Baseline | None


@dataclass(frozen=True)
class Tradeoff:
    """All that there is to draw; `dense` are the changes of dense trainings, by name."""

    curves: list[Curve]
    dense: dict[str, float]


def gather(inputs: Sequence[Input]) -> Tradeoff:
    """Return every curve among the inputs."""
    trainings = [one for one in inputs if isinstance(one, Training)]
    dense = [one for one in trainings if one.is_dense]
    curves = [
        _training_curve(one, one.last.validation_mac_cut, dense)
        for one in trainings
        if not one.is_dense and one.last.validation_mac_cut is not None
    ]
    curves += [_calibration_curve(one, dense) for one in inputs if isinstance(one, Calibration)]
    curves += [
        _run_curve(one, one.accuracy, dense)
        for one in inputs
        if isinstance(one, Run) and one.accuracy is not None
    ]
    changes = {}
    for one in dense:
        own = Baseline(one.title, one.last.validation_accuracy)
        best = _dense_baseline(one.network, dense, test=False) or own
        changes[one.title] = best.change(own.accuracy)
    return Tradeoff(curves, changes)


def is_same_network(name: str | None, trained: str | None) -> bool:
    """Whether an artifact of this name may hold a trained network.

    Artifacts are named after model files: ``compact_vgg_lkam`` holds ``compact_vgg``.
    """
    if name is None or trained is None:
        return False
    return name == trained or name.startswith(f"{trained}_")


def _dense_baseline(
    network: str | None, dense: Sequence[Training], *, test: bool
) -> Baseline | None:
    same = [one for one in dense if is_same_network(network, one.network)]
    found = [
        Baseline(f"{one.title}{', test' if test else ''}", accuracy)
        for one in same
        for accuracy in [one.last.test_accuracy if test else one.last.validation_accuracy]
        if accuracy is not None
    ]
    return max(found, key=lambda baseline: baseline.accuracy, default=None)


def _own_baseline(settings: Sequence[Setting], name: str) -> Baseline | None:
    """Return the most accurate of several settings; one alone has nothing to be counted from."""
    if len(settings) < 2:
        return None
    return Baseline(name, max(setting.accuracy for setting in settings))


def _training_curve(training: Training, mac_cut: float, dense: Sequence[Training]) -> Curve:
    last = training.last
    settings = [Setting("last epoch", mac_cut, last.validation_accuracy)]
    accuracy, cut = last.validation_accurate_accuracy, last.validation_accurate_mac_cut
    if accuracy is not None and cut is not None:
        settings = [Setting("last epoch, thresholds lowered", cut, accuracy), *settings]
    baseline = _dense_baseline(training.network, dense, test=False)
    if baseline is None:
        epochs = [Setting("", 0.0, epoch.validation_accuracy) for epoch in training.history]
        baseline = _own_baseline([*epochs, *settings], "its most accurate epoch")
    return Curve(training.title, settings, settings, baseline)


def _calibration_curve(calibration: Calibration, dense: Sequence[Training]) -> Curve:
    settings = [Setting("", point.mac_cut, point.accuracy) for point in calibration.sweep]
    names: dict[tuple[float, float], list[str]] = {}
    for name, point in calibration.points.items():
        names.setdefault((point.mac_cut, point.accuracy), []).append(name)
    marked = [Setting(", ".join(together), *at) for at, together in names.items()]
    baseline = _dense_baseline(calibration.network, dense, test=False)
    baseline = baseline or _own_baseline(settings, "its most accurate setting")
    return Curve(f"{calibration.network}, calibration", _by_cut(settings), marked, baseline)


def _run_curve(run: Run, accuracy: float, dense: Sequence[Training]) -> Curve:
    marked = [Setting(run.point or "as run", run.mac_cut, accuracy)]
    settings = [Setting("", point.mac_cut, point.accuracy) for point in run.points or []]
    baseline = _dense_baseline(run.network, dense, test=run.split != "validation")
    baseline = baseline or _own_baseline(settings, "its most accurate setting")
    return Curve(name_run(run), _by_cut(settings or marked), marked, baseline)


def _by_cut(settings: Sequence[Setting]) -> list[Setting]:
    return sorted(settings, key=lambda setting: (setting.mac_cut, -setting.accuracy))
