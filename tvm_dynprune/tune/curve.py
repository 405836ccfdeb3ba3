# SPDX-License-Identifier: Apache-2.0
"""How the expected time of a network's tuned kernels fell from trial to trial."""

from collections.abc import Iterable, Sequence

from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.tune.best import Best
from tvm_dynprune.tune.log import Trial


def tuning_curve(best: Iterable[Best], trials: Sequence[Trial]) -> list[tuple[int, float, float]]:
    """(Trials, seconds of tuning, expected ms of all kernels for one input) after each trial.

    It begins when every kernel has been measured once.
    """
    times = {workload_key(b.task.spec): len(b.task.layers) for b in best}
    fastest: dict[str, float] = {}
    curve = []
    for number, trial in enumerate(trials, 1):
        if trial.seconds and trial.task in times:
            fastest[trial.task] = min(fastest.get(trial.task, trial.expected_s), trial.expected_s)
        if len(fastest) == len(times):
            total = sum(times[task] * seconds for task, seconds in fastest.items())
            curve.append((number, trial.at_s, total * 1e3))
    return curve
