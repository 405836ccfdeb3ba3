# SPDX-License-Identifier: Apache-2.0
"""Finals: the fastest schedules of a kernel, timed again in turns.

Of many candidates that are about equally fast, the one that was measured fastest was lucky.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.tune.log import FINALS, TuningLog, rank_trials, read_trials
from tvm_dynprune.tune.task import TuningTask
from tvm_dynprune.tune.workers import Workers

_FINALISTS = 8
NEAR = 1.25  # times the fastest: the clock of a shared machine moves by a fifth between batches
_TURNS = 7


def play_finals(
    tasks: Sequence[TuningTask],
    log: TuningLog,
    workers: Workers,
    on_played: Callable[[], None],
    interrupted: Callable[[], bool],
) -> None:
    """Time the finalists of each kernel and add them to the log, unless it holds all of them.

    Raises
    ------
    DeviceError
        The devices are gone.
    """
    known = {(final.task, final.schedule) for final in read_trials(log.folder, FINALS)}
    ranked = rank_trials(log.trials, ())
    for task in tasks:
        if interrupted():
            return
        key = workload_key(task.spec)
        ran = [trial for trial in ranked if trial.task == key]
        near = [trial for trial in ran if trial.expected_s <= NEAR * ran[0].expected_s]
        finalists = near[:_FINALISTS]
        if len(finalists) > 1 and any((key, each.schedule) not in known for each in finalists):
            schedules = [Schedule.from_json(trial.schedule) for trial in finalists]
            log.append_finals(task, _expected_s(task, schedules, workers))
        on_played()


def _expected_s(
    task: TuningTask, schedules: Sequence[Schedule], workers: Workers
) -> dict[Schedule, float]:
    """Expected time of each, from the medians of its turns; those that failed are left out."""
    shares = [lists.share for lists in task.inputs]
    timed = workers.time_inputs([(task, schedule) for schedule in schedules], _TURNS)
    return {
        schedule: float(np.dot(seconds, shares))
        for schedule, (seconds, _) in zip(schedules, timed, strict=True)
        if seconds is not None
    }
