# SPDX-License-Identifier: Apache-2.0
"""Time of tuned kernels against their open channels: measured, fitted, and kept with the log.

For each kernel with gates: the fastest schedule of each algorithm that tuning tried, walking lists
(``indexed``) or everything (``dense``), and the branches of conditionals (``if``). Each is timed at
some numbers of open channels, drawn at random, and fitted by `kernels.tuned.OpenCost`; other
numbers say how far the fit is off.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import gcd
from pathlib import Path

import numpy as np

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.tuned import OpenCost, TunedKernel
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.passes.apply_schedules import open_channels
from tvm_dynprune.tune.best import Best, read_best
from tvm_dynprune.tune.log import Trial, whole_lines
from tvm_dynprune.tune.space import own_choice
from tvm_dynprune.tune.task import OpenLists, TuningTask

logger = logging.getLogger(__name__)

OPEN_COST = "open_cost.jsonl"
_FITTED = (0.125, 0.5, 1.0)  # shares of each side's groups
_HELD_OUT = 6


@dataclass(frozen=True)
class OpenCostTrial:
    """One line of ``open_cost.jsonl``: a kernel in one of its forms, at some open channels.

    `points` are (open_in, open_out, seconds), of which the last `held_out` were not fitted to.
    """

    task: str  # its `workload_key`
    lowering: str
    schedule: str  # as JSON
    points: list[tuple[int, int, float]]
    held_out: int
    coefficients: list[float]
    error: float
    failure: str | None = None

    @property
    def cost(self) -> OpenCost:
        """What the compiler takes of it."""
        c0, c1, c2, c3 = self.coefficients
        schedule = Schedule.from_json(self.schedule)
        return OpenCost(self.lowering, schedule, (c0, c1, c2, c3), self.error)


@dataclass(frozen=True)
class Form:
    """A task in the form of one lowering, with the open lists to time it at as its inputs."""

    lowering: str
    task: TuningTask
    schedule: Schedule


def forms_of(task: TuningTask, trials: Iterable[Trial]) -> list[Form]:
    """What is timed of a task; nothing if it has no gates.

    Parameters
    ----------
    task
        What was tuned.
    trials
        Of the log that it was tuned for, the fastest first.
    """
    spec = task.spec
    if not (spec.open_in or spec.visit != "all"):
        return []
    points = _points(task)
    fastest = _fastest(task, trials)
    listed = replace(task, inputs=points)
    forms = [Form("indexed", listed, schedule) for schedule in fastest]
    plain = replace(spec, open_in=False, unit_in=1, visit="all", fill=False)
    whole = replace(task, spec=plain, inputs=(OpenLists(1.0, None, None),))
    forms += [Form("dense", whole, schedule) for schedule in fastest]
    if spec.visit == "blocks" and spec.y.batch == 1:
        branch = replace(plain, visit="group")
        forms.append(Form("if", replace(listed, spec=branch), Schedule()))
    return forms


def _fastest(task: TuningTask, trials: Iterable[Trial]) -> list[Schedule]:
    """The fastest schedule that was tried of direct convolution, and of Winograd's."""
    key, own = workload_key(task.spec), own_choice(task)
    ran = [trial for trial in trials if trial.task == key]
    schedules = [Schedule.from_json(trial.schedule) for trial in ran] or [own]
    kinds = {schedule.algorithm == "direct": schedule for schedule in reversed(schedules)}
    return list(kinds.values())


def _points(task: TuningTask) -> tuple[OpenLists, ...]:
    """Open lists to fit to, then those to test the fit on."""
    spec, rng = task.spec, np.random.default_rng(0)
    units = (spec.unit_in if spec.open_in else 0, _unit_out(task))
    sizes = (spec.x.channels, spec.y.channels)
    groups = [-(-size // unit) if unit else 0 for size, unit in zip(sizes, units, strict=True)]
    fitted = [sorted({max(1, round(n * f)) for f in _FITTED}) if n else [0] for n in groups]
    held_out = [[int(rng.integers(1, n + 1)) if n else 0 for n in groups] for _ in range(_HELD_OUT)]
    counts = [*product(*fitted), *held_out]

    def drawn(side: int, count: int) -> list[int] | None:
        if not units[side]:
            return None
        chosen = np.sort(rng.permutation(groups[side])[:count])
        channels = (chosen[:, None] * units[side] + np.arange(units[side])).ravel()
        return channels[channels < sizes[side]].tolist()

    share = 1 / len(counts)
    return tuple(OpenLists(share, drawn(0, n_in), drawn(1, n_out)) for n_in, n_out in counts)


def _unit_out(task: TuningTask) -> int:
    """Neighbouring output channels that open together in a task's inputs; 0 if all are open."""
    spec = task.spec
    if spec.visit == "all":
        return 0
    unit = spec.y.lanes
    if spec.visit == "gather":
        for lists in task.inputs:
            channels = np.array(lists.open_out or [0], int)
            starts = channels[np.diff(channels, prepend=-2) != 1]
            ends = channels[np.diff(channels, append=spec.y.channels + 1) != 1] + 1
            unit = gcd(unit, *starts.tolist(), *ends.tolist())
    return unit


def fit(
    form: Form, task: TuningTask, seconds: Sequence[float] | None, failure: str | None
) -> OpenCostTrial:
    """Fit the times of a form's inputs, or write down why there are none.

    `task` is the one that `form` was made of.

    Relative errors weigh alike. Coefficients are not below 0 (Lawson, Hanson: "Solving Least
    Squares Problems", chapter 23), so that a kernel never gets faster with more open.
    """
    from scipy.optimize import nnls  # compiling with a log needs no fit

    key, schedule = workload_key(task.spec), form.schedule.to_json()
    if seconds is None:
        logger.warning("%s, %s: %s", task.layers[0], form.lowering, failure)
        return OpenCostTrial(key, form.lowering, schedule, [], 0, [], 0.0, failure)
    sizes = (task.spec.x.channels, task.spec.y.channels)
    points = [
        (
            sizes[0] if lists.open_in is None else len(lists.open_in),
            sizes[1] if lists.open_out is None else len(lists.open_out),
            time_s,
        )
        for lists, time_s in zip(form.task.inputs, seconds, strict=True)
    ]
    held_out = _HELD_OUT if len(points) > _HELD_OUT else 0
    rows = np.array([[1, a, b, a * b] if len(points) > 1 else [1, 0, 0, 0] for a, b, _ in points])
    times = np.array(seconds)
    fitted = slice(0, len(points) - held_out)
    scale = rows[fitted].max(axis=0).clip(min=1)  # columns of like size
    matrix = rows[fitted] / scale / times[fitted, None]
    coefficients = nnls(matrix, np.ones(len(matrix)))[0] / scale
    errors = np.abs(rows @ coefficients / times - 1)[-held_out:]
    error = round(float(np.median(errors)), 4) if held_out else 0.0
    return OpenCostTrial(
        key, form.lowering, schedule, points, held_out, coefficients.tolist(), error
    )


@dataclass(frozen=True)
class CostRow:
    """A kernel in one form: share of open pairs → predicted time.

    `layers` is empty but in a kernel's first row; `dense_from` is its `break_even`.
    """

    layers: tuple[str, ...]
    cost: OpenCost
    expected_s: dict[float, float]
    dense_from: float


def cost_rows(
    best: Mapping[str, Best],
    trials: Iterable[OpenCostTrial],
    shares: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
) -> list[CostRow]:
    """What a log's fits predict for each of its kernels."""
    costs: dict[str, list[OpenCost]] = {}
    for trial in trials:
        if trial.failure is None:
            costs.setdefault(trial.task, []).append(trial.cost)
    rows = []
    for key in [key for key in best if key in costs]:
        task = best[key].task
        dense_from = break_even(costs[key], task.spec)
        for i, cost in enumerate(costs[key]):
            times = {s: cost.seconds(*open_channels(task.spec, s)) for s in shares}
            rows.append(CostRow(task.layers if i == 0 else (), cost, times, dense_from))
    return rows


def break_even(costs: Sequence[OpenCost], spec: Conv2d) -> float:
    """Share of open pairs of channels from which on a dense kernel is fastest; 1 if it never is."""
    kinds = {
        lists: [cost for cost in costs if (cost.lowering != "dense") == lists]
        for lists in (True, False)
    }
    for share in np.linspace(0.01, 0.99, 99) if all(kinds.values()) else ():
        counts = open_channels(spec, share)
        lists, dense = (min(c.seconds(*counts) for c in kinds[kind]) for kind in (True, False))
        if dense <= lists:
            return float(share)
    return 1.0


def held_out_errors(costs: Iterable[OpenCostTrial]) -> list[float]:
    """Relative error of each prediction for open sets that were not fitted to."""
    return [
        abs(trial.cost.seconds(open_in, open_out) / seconds - 1)
        for trial in costs
        if trial.failure is None
        for open_in, open_out, seconds in trial.points[len(trial.points) - trial.held_out :]
    ]


def append_costs(folder: Path, trials: Sequence[OpenCostTrial]) -> None:
    """Add a kernel's lines to a log's ``open_cost.jsonl``, all or none."""
    if not trials:
        return
    with (folder / OPEN_COST).open("a", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(asdict(trial)) + "\n" for trial in trials))


def read_costs(folder: Path) -> Iterator[OpenCostTrial]:
    """The lines of a log's ``open_cost.jsonl``, if there is one."""
    if (folder / OPEN_COST).exists():
        for line in whole_lines(folder / OPEN_COST):
            yield OpenCostTrial(**json.loads(line))


def read_tuned(folder: Path) -> dict[str, TunedKernel]:
    """`workload_key` → what a log says of the kernel.

    Raises
    ------
    LogError
        There is no log, or it has no trials.
    """
    costs: dict[str, dict[tuple[str, str], OpenCost]] = {}
    for trial in read_costs(folder):
        if trial.failure is None:
            costs.setdefault(trial.task, {})[trial.lowering, trial.schedule] = trial.cost
    best = read_best(folder)
    return {
        key: TunedKernel(each.schedule, tuple(costs.get(key, {}).values()))
        for key, each in best.items()
    }
