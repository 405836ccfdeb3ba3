# SPDX-License-Identifier: Apache-2.0
"""TuningLog: what tuning found out, on disk.

=============================  =====================================================================
``run.json``                   what was tuned, how, and with which versions
``trials.jsonl``               every trial as it ended: its time, or why it failed
``finals.jsonl``               the fastest of each kernel, timed again in turns
``database_workload.json``     MetaSchedule's own database: tasks,
``database_tuning_record...``  and the trials that ran
=============================  =====================================================================

All but ``run.json`` are only appended to, a line per trial, so that a kill costs what was being
measured. A torn last line is left out, with a warning.
"""

import json
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tvm
from tvm.s_tir import meta_schedule as ms

from tvm_dynprune.errors import LogError
from tvm_dynprune.files import write_atomic
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.tune.space import candidate_of, workload_module
from tvm_dynprune.tune.task import TuningTask

logger = logging.getLogger(__name__)

RUN = "run.json"
TRIALS, FINALS = "trials.jsonl", "finals.jsonl"
DATABASE = ("database_workload.json", "database_tuning_record.json")


@dataclass(frozen=True)
class RunInfo:
    """What ``run.json`` holds.

    `unit` is "seconds", or "instructions" where an emulated device counts them: times are then
    billions of them.
    """

    network: str
    soc: str
    target: dict[str, Any]
    tvm: str = tvm.__version__
    seed: int = 0
    device: str = "here"
    unit: str = "seconds"
    commands: list[str] = field(default_factory=list)  # the first run, and what resumed it


@dataclass(frozen=True)
class Trial:
    """One line of ``trials.jsonl``: what was measured, after how many seconds of tuning."""

    task: str  # its `workload_key`
    schedule: str  # as JSON
    at_s: float
    seconds: list[float] | None  # expected time of the kernel, of each round
    failure: str | None = None

    @property
    def expected_s(self) -> float:
        """The mean of the rounds; infinite if the trial failed."""
        return float("inf") if not self.seconds else sum(self.seconds) / len(self.seconds)


class TuningLog:
    """A folder of these files, open for appending.

    Parameters
    ----------
    folder
        Made if it does not exist.
    info
        What is tuned now.

    Raises
    ------
    LogError
        The folder holds a log of another network, target or TVM.
    """

    def __init__(self, folder: Path, info: RunInfo) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RUN).exists():
            before = read_info(folder)
            check_info(folder, before, info.target)
            if (before.network, before.seed) != (info.network, info.seed):
                raise LogError(
                    f"{folder} holds a log of {before.network}, seed {before.seed}: resume that, "
                    "or choose another --out"
                )
            info = replace(info, commands=before.commands + info.commands)
        for name in (TRIALS, FINALS, *DATABASE):
            _drop_torn_line(folder / name)
        with write_atomic(folder / RUN) as path:
            path.write_text(json.dumps(asdict(info), indent=1) + "\n", encoding="utf-8")
        self.folder, self.info = folder, info
        self.trials = list(read_trials(folder))
        self._before = {(trial.task, trial.schedule): trial for trial in self.trials}
        self._started = time.monotonic() - (self.trials[-1].at_s if self.trials else 0.0)
        self.database = ms.database.JSONDatabase(work_dir=str(folder))
        self._stream = (folder / TRIALS).open("a", encoding="utf-8")

    def append(
        self, task: TuningTask, schedule: Schedule, seconds: list[float] | None, failure: str | None
    ) -> Trial:
        """Add a trial; it is on disk when this returns."""
        key, at_s = workload_key(task.spec), time.monotonic() - self._started
        trial = Trial(key, schedule.to_json(), round(at_s, 3), seconds, failure)
        if seconds is not None:
            self._commit(task, schedule, seconds)
        self.trials.append(trial)
        self._stream.write(json.dumps(asdict(trial)) + "\n")
        self._stream.flush()
        return trial

    def append_finals(self, task: TuningTask, expected_s: Mapping[Schedule, float]) -> None:
        """Add what timing a kernel's fastest schedules in turns found."""
        key, at_s = workload_key(task.spec), round(time.monotonic() - self._started, 3)
        finals = [Trial(key, one.to_json(), at_s, [s]) for one, s in expected_s.items()]
        with (self.folder / FINALS).open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(asdict(final)) + "\n" for final in finals)

    def find(self, task: TuningTask, schedule: Schedule) -> Trial | None:
        """The trial of an earlier run."""
        return self._before.get((workload_key(task.spec), schedule.to_json()))

    @property
    def elapsed_s(self) -> float:
        """Seconds of tuning, those of earlier runs included."""
        return time.monotonic() - self._started

    def _commit(self, task: TuningTask, schedule: Schedule, seconds: list[float]) -> None:
        module = workload_module(task)
        arguments = ms.arg_info.ArgInfo.from_entry_func(module, remove_preproc=True)
        trace: Any = candidate_of(task, schedule).trace
        target = tvm.target.Target({"kind": "llvm", "num-cores": 1, **self.info.target})
        workload = self.database.commit_workload(module)
        record = ms.database.TuningRecord(trace, workload, seconds, target, arguments)
        self.database.commit_tuning_record(record)

    def close(self) -> None:
        """Close the file of trials."""
        self._stream.close()


def read_info(folder: Path) -> RunInfo:
    """The ``run.json`` of a log.

    Raises
    ------
    LogError
        There is none, or it is damaged.
    """
    try:
        return RunInfo(**json.loads((folder / RUN).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise LogError(f"{folder}: no tuning log ({RUN}); `tvm-dynprune tune` writes one") from None
    except (ValueError, TypeError) as error:
        raise LogError(f"{folder / RUN}: damaged or of another version: {error}") from None


def check_info(folder: Path, info: RunInfo, target: dict[str, Any]) -> None:
    """Refuse a log that says nothing about kernels of this TVM for this target.

    Raises
    ------
    LogError
        It was written by another version of TVM, or for another target.
    """
    if info.tvm != tvm.__version__:
        raise LogError(
            f"{folder}: log of TVM {info.tvm}, this is {tvm.__version__}: tune again, or install it"
        )
    if info.target != target:
        raise LogError(
            f"{folder}: log for {info.soc} ({_name(info.target)}), not {_name(target)}: tune for "
            "this SoC, or name that one with --soc"
        )


def read_trials(folder: Path, name: str = TRIALS) -> Iterator[Trial]:
    """The trials of a log, in order; with `FINALS` those that were timed in turns."""
    if (folder / name).exists():
        for line in whole_lines(folder / name):
            yield Trial(**json.loads(line))


def rank_trials(trials: Iterable[Trial], finals: Iterable[Trial]) -> list[Trial]:
    """The trials that ran, fastest first: those timed in turns, by these times, before others.

    Of many candidates that are about equally fast, the one that was measured fastest was lucky.
    """
    timed = {(final.task, final.schedule): final for final in finals}
    ran = [timed.get((t.task, t.schedule), t) for t in trials if t.seconds]
    return sorted(ran, key=lambda t: ((t.task, t.schedule) not in timed, t.expected_s))


@contextmanager
def open_database(folder: Path) -> Iterator[ms.database.JSONDatabase]:
    """The database of a log as it is, without a torn last line."""
    with tempfile.TemporaryDirectory() as name:
        for file in DATABASE:
            if (folder / file).exists():
                lines = whole_lines(folder / file)
                (Path(name) / file).write_text("".join(lines), encoding="utf-8")
        yield ms.database.JSONDatabase(work_dir=name)


def whole_lines(path: Path) -> list[str]:
    """A file's lines without a torn last one, which is warned of."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        logger.warning("%s: the last line is torn and left out", path)
        lines.pop()
    return lines


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        whole = whole_lines(path)
        size = sum(len(line.encode()) for line in whole)
        if size != path.stat().st_size:
            with path.open("r+b") as stream:
                stream.truncate(size)


def _name(target: dict[str, Any]) -> str:
    return " ".join([str(target["mcpu"]), *target.get("mattr", [])])
