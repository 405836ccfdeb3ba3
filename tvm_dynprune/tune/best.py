# SPDX-License-Identifier: Apache-2.0
"""The best schedules of a tuning log."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tvm.s_tir import Schedule as TvmSchedule, meta_schedule as ms

from tvm_dynprune.errors import LogError
from tvm_dynprune.files import write_atomic
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.tune.log import (
    DATABASE,
    FINALS,
    TRIALS,
    Trial,
    open_database,
    rank_trials,
    read_info,
    read_trials,
)
from tvm_dynprune.tune.space import schedule_of, task_of
from tvm_dynprune.tune.task import TuningTask


@dataclass(frozen=True)
class Best:
    """The best schedule of a task, and the task it was found for."""

    task: TuningTask
    schedule: Schedule
    expected_s: float


def read_best(folder: Path) -> dict[str, Best]:
    """`workload_key` → the best of all trials that ran.

    Raises
    ------
    LogError
        There is no log, or it has no trials.
    """
    read_info(folder)
    best: dict[str, Best] = {}
    with open_database(folder) as database:
        for found, _ in _ranked_records(folder, database):
            best.setdefault(workload_key(found.task.spec), found)
    if not best:
        raise LogError(f"{folder}: no trial of this log ran: see its {TRIALS}, and tune again")
    return best


def prune_log(folder: Path, keep: int) -> tuple[int, int]:
    """Leave the best `keep` records of each kernel; returns how many there were, and are.

    Raises
    ------
    LogError
        There is no log.
    """
    read_info(folder)
    with open_database(folder) as database, tempfile.TemporaryDirectory() as name:
        pruned = ms.database.JSONDatabase(work_dir=name)
        kept: dict[str, int] = {}
        for found, record in _ranked_records(folder, database):
            key = workload_key(found.task.spec)
            kept[key] = kept.get(key, 0) + 1
            if kept[key] <= keep:
                pruned.commit_workload(record.workload.mod)
                pruned.commit_tuning_record(record)
        for file in DATABASE:
            with write_atomic(folder / file) as path:
                path.write_bytes((Path(name) / file).read_bytes())
        return len(database), len(pruned)


def _ranked_records(
    folder: Path, database: ms.database.JSONDatabase
) -> list[tuple[Best, ms.database.TuningRecord]]:
    """What each record is of, as `rank_trials` orders them."""
    records: dict[tuple[str, str], tuple[Best, ms.database.TuningRecord]] = {}
    trials = []
    for record in database.get_all_tuning_records():
        schedule = TvmSchedule(record.workload.mod)
        record.trace.apply_to_schedule(schedule, remove_postproc=False)
        task, chosen = task_of(record.workload.mod), schedule_of(schedule.mod)
        seconds = [float(s) for s in record.run_secs or ()]
        trial = Trial(workload_key(task.spec), chosen.to_json(), 0.0, seconds)
        key = trial.task, trial.schedule
        if key not in records or trial.expected_s < records[key][0].expected_s:
            records[key] = Best(task, chosen, trial.expected_s), record
        trials.append(trial)
    ranked = rank_trials(trials, read_trials(folder, FINALS))
    keys = dict.fromkeys((trial.task, trial.schedule) for trial in ranked)
    times = {(t.task, t.schedule): t.expected_s for t in reversed(ranked)}
    return [(replace(records[key][0], expected_s=times[key]), records[key][1]) for key in keys]
