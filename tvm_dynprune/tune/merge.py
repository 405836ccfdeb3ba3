# SPDX-License-Identifier: Apache-2.0
"""Logs of one SoC made into one: of several networks, machines or nights."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tvm.s_tir import meta_schedule as ms

from tvm_dynprune.errors import LogError
from tvm_dynprune.files import write_folder_atomic
from tvm_dynprune.tune.log import (
    FINALS,
    RUN,
    TRIALS,
    RunInfo,
    Trial,
    check_info,
    open_database,
    read_info,
    read_trials,
)
from tvm_dynprune.tune.open_cost import append_costs, read_costs
from tvm_dynprune.tune.space import task_of


def merge_logs(folders: Sequence[Path], out: Path, *, force: bool = False) -> tuple[int, int]:
    """Write the trials and records of several logs as one log; return the numbers of both.

    What several logs hold, as copies of each other do, is written once. Seconds of tuning go on
    from one log to the next, so that a curve shows them in the order given.

    Raises
    ------
    LogError
        A folder is no log, or its target, TVM or unit of time is not that of the first.
    OutputExistsError
        `out` exists and `force` is false.
    """
    infos = [read_info(folder) for folder in folders]
    for folder, info in zip(folders, infos, strict=True):
        check_info(folder, info, infos[0].target)
        if info.unit != infos[0].unit:
            raise LogError(
                f"{folder}: a log of {info.unit}, {folders[0]} is one of {infos[0].unit}: "
                "they say nothing about each other"
            )
    trials = _in_sequence(list(read_trials(folder)) for folder in folders)
    with write_folder_atomic(out, force=force) as folder:
        merged = json.dumps(asdict(_merged(infos)), indent=1)
        (folder / RUN).write_text(merged + "\n", encoding="utf-8")
        lines = "".join(json.dumps(asdict(trial)) + "\n" for trial in trials)
        (folder / TRIALS).write_text(lines, encoding="utf-8")
        finals = [final for each in folders for final in read_trials(each, FINALS)]
        lines = "".join(json.dumps(asdict(final)) + "\n" for final in finals)
        (folder / FINALS).write_text(lines, encoding="utf-8")
        _merge_costs(folders, folder)
        return len(trials), _merge_databases(folders, folder)


def _merge_costs(folders: Sequence[Path], out: Path) -> None:
    """Times against open channels, of each kernel those of the first log that has them."""
    known: set[str] = set()
    for folder in folders:
        new = [trial for trial in read_costs(folder) if trial.task not in known]
        append_costs(out, new)
        known |= {trial.task for trial in new}


def _merged(infos: Sequence[RunInfo]) -> RunInfo:
    """Networks and devices in order, each once; the commands of all."""
    networks, devices = (
        "+".join(dict.fromkeys(getattr(info, name) for info in infos))
        for name in ("network", "device")
    )
    commands = [command for info in infos for command in info.commands]
    return replace(infos[0], network=networks, device=devices, commands=commands)


def _in_sequence(logs: Iterable[Sequence[Trial]]) -> list[Trial]:
    seen, merged, began_s = set(), [], 0.0
    for trials in logs:
        for trial in trials:
            measured = json.dumps(asdict(replace(trial, at_s=0.0)))
            if measured not in seen:
                merged.append(replace(trial, at_s=round(began_s + trial.at_s, 3)))
            seen.add(measured)
        began_s = merged[-1].at_s if merged else 0.0
    return merged


def _merge_databases(folders: Sequence[Path], out: Path) -> int:
    """Commit each record once; an equal workload is found by the database itself."""
    merged = ms.database.JSONDatabase(work_dir=str(out))
    seen: set[tuple[str, str]] = set()
    for folder in folders:
        with open_database(folder) as database:
            for record in database.get_all_tuning_records():
                module = record.workload.mod
                measured = task_of(module).to_json(), str(record.as_json())
                if measured not in seen:
                    merged.commit_workload(module)
                    merged.commit_tuning_record(record)
                seen.add(measured)
    return len(merged)
