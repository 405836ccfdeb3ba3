# SPDX-License-Identifier: Apache-2.0
"""MetaSchedule's builder and runner on top of `measure`: worker processes that may hang or crash.

A candidate that an earlier run of the same log measured is neither built nor run again: that is
how a run is resumed, by going through the same search.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.support.popen_pool import MapResult, PopenPoolExecutor, StatusKind

from tvm_dynprune.errors import DeviceError
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.tune.log import Trial
from tvm_dynprune.tune.measure import (
    DEVICE_LOST,
    build_candidate,
    run_here,
    run_remote,
    start_worker,
)
from tvm_dynprune.tune.space import schedule_of, task_of
from tvm_dynprune.tune.task import TuningTask

BUILD_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 30.0
REMOTE_TIMEOUT_S = 300.0  # with the time that a device is busy with others
MOST_DEVICES = 8  # that run candidates at once
_ATTEMPTS = 3
_PAUSE_S = 2.0  # in which a device may come back

# What becomes of a candidate: (task, schedule, seconds, why it failed) is written down.
Record = Callable[[TuningTask, Schedule, "list[float] | None", "str | None"], Trial]
Find = Callable[[TuningTask, Schedule], "Trial | None"]
Job = tuple[TuningTask, Schedule]


@dataclass(frozen=True)
class Devices:
    """All devices that a tracker has under a key."""

    tracker: tuple[str, int]
    key: str


class Workers:
    """The processes that build and run candidates of one tuning run, and what they are doing.

    Parameters
    ----------
    target
        As TVM takes it, with ``kind`` and ``num-cores``.
    cores
        Builders use them all, the runner the last one.
    find
        The trial of an earlier run, if there is one.
    record
        Called as soon as a candidate has run, or failed.
    devices
        Where candidates run, all at once; None for here, one after the other.
    """

    def __init__(
        self,
        target: Mapping[str, Any],
        cores: Sequence[int],
        find: Find,
        record: Record,
        devices: Devices | None = None,
    ) -> None:
        self.target, self.find, self.record = dict(target), find, record
        self.devices, self.lost = devices, ""
        self._folder = tempfile.TemporaryDirectory(prefix="dynprune-tune-")
        self._jobs: dict[str, Job] = {}
        self._builders = _pool(list(cores), len(cores), BUILD_TIMEOUT_S)
        if devices is None:
            self._runners = _pool([cores[-1]], 1, RUN_TIMEOUT_S)
        else:
            self._runners = _pool(list(cores), MOST_DEVICES, REMOTE_TIMEOUT_S)

    def close(self) -> None:
        """End the processes, and remove what they built."""
        self._builders.shutdown(wait=False)
        self._runners.shutdown(wait=False)
        self._folder.cleanup()

    def build(self, jobs: Sequence[Job]) -> list[tuple[str, str | None]]:
        """(Folder, why it was not built) for each; known ones are not built."""
        folders = [self._new_folder() for _ in jobs]
        new = [(job, f) for job, f in zip(jobs, folders, strict=True) if self.find(*job) is None]
        failures = self._build_in(new)
        results = []
        for job, folder in zip(jobs, folders, strict=True):
            failure = failures.get(folder)
            if failure is None:
                self._jobs[folder] = job
            else:
                self.record(*job, None, failure)
            results.append((folder, failure))
        return results

    def run(self, folders: Sequence[str]) -> list[tuple[list[float] | None, str | None]]:
        """(Expected seconds, why it failed) for each that was built.

        Raises
        ------
        DeviceError
            The devices are gone; `lost` has the text as well.
        """
        new = [folder for folder in folders if self.find(*self._jobs[folder]) is None]
        trials = {}
        for folder, (rounds, failure) in self._outcomes(new):
            job = self._jobs[folder]
            expected = None if rounds is None else _expected(job[0], rounds)
            trials[folder] = self.record(*job, expected, failure)
        results = []
        for folder in folders:
            job = self._jobs.pop(folder)
            trial = trials.get(folder) or self.find(*job)
            assert trial is not None
            shutil.rmtree(folder, ignore_errors=True)
            results.append((trial.seconds, trial.failure))
        return results

    def time_inputs(
        self, jobs: Sequence[Job], turns: int = 1
    ) -> list[tuple[list[float] | None, str | None]]:
        """(Median seconds of each of the task's inputs, why not) for each, in turns; no trials.

        Raises
        ------
        DeviceError
            As of `run`.
        """
        folders = [self._new_folder() for _ in jobs]
        failures = self._build_in(list(zip(jobs, folders, strict=True)))
        rounds: dict[str, list[list[float]]] = {folder: [] for folder in folders}
        for _ in range(turns):
            built = [folder for folder in folders if failures[folder] is None]
            for folder, (more, failures[folder]) in self._outcomes(built):
                rounds[folder] += more or []
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        return [
            (np.median(rounds[folder], axis=0).tolist(), None)
            if failures[folder] is None
            else (None, failures[folder])
            for folder in folders
        ]

    def _new_folder(self) -> str:
        return tempfile.mkdtemp(dir=self._folder.name)

    def _build_in(self, jobs: Sequence[tuple[Job, str]]) -> dict[str, str | None]:
        """Folder → why nothing was built into it."""
        requests = [
            (task.to_json(), schedule.to_json(), self.target, folder)
            for (task, schedule), folder in jobs
        ]
        outcomes = _map(self._builders, _build, requests, BUILD_TIMEOUT_S, "building")
        return {folder: failure for (_, folder), (_, failure) in zip(jobs, outcomes, strict=True)}

    def _outcomes(self, folders: list[str]) -> Iterator[tuple[str, tuple[Any, str | None]]]:
        """(Folder, what came of it); what a lost device was running goes to another one."""
        if self.devices is None:
            for folder in folders:
                outcome = _map(self._runners, run_here, [folder], RUN_TIMEOUT_S, "running")
                yield folder, next(outcome)
            return
        for _ in range(_ATTEMPTS):
            jobs = [(folder, self.devices) for folder in folders]
            ran = _map(self._runners, _run_remote, jobs, REMOTE_TIMEOUT_S, "running")
            left = []
            for folder, outcome in zip(folders, ran, strict=True):
                if DEVICE_LOST in (outcome[1] or ""):
                    left.append(folder)
                    self.lost = str(outcome[1]).split(DEVICE_LOST)[1]
                else:
                    yield folder, outcome
            if not left:
                self.lost = ""
                return
            folders = left
            time.sleep(_PAUSE_S)
        raise DeviceError(self.lost)


@derived_object
class CandidateBuilder(ms.builder.PyBuilder):
    """MetaSchedule's view of `Workers.build`."""

    def __init__(self, workers: Workers) -> None:
        super().__init__()
        self.workers = workers

    def build(self, build_inputs: list[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        """Build each; a failure is a result with its reason."""
        jobs = [(task_of(item.mod), schedule_of(item.mod)) for item in build_inputs]
        return [
            ms.builder.BuilderResult(folder if failure is None else None, failure)
            for folder, failure in self.workers.build(jobs)
        ]


@derived_object
class CandidateRunner(ms.runner.PyRunner):
    """MetaSchedule's view of `Workers.run`."""

    def __init__(self, workers: Workers) -> None:
        super().__init__()
        self.workers = workers

    def run(self, runner_inputs: list[ms.runner.RunnerInput]) -> list[Any]:
        """Run each; all are done when this returns, so that nothing disturbs the timing."""
        results = self.workers.run([str(item.artifact_path) for item in runner_inputs])
        return [Done(ms.runner.RunnerResult(*result)) for result in results]


@derived_object
class Done(ms.runner.PyRunnerFuture):
    """A result that is there."""

    def __init__(self, result: ms.runner.RunnerResult) -> None:
        super().__init__()
        self._result = result

    def done(self) -> bool:
        """Always."""
        return True

    def result(self) -> ms.runner.RunnerResult:
        """The result."""
        return self._result


def _pool(cores: list[int], workers: int, timeout_s: float) -> PopenPoolExecutor:
    return PopenPoolExecutor(
        max_workers=workers, timeout=timeout_s, initializer=start_worker, initargs=(cores,)
    )


def _build(job: tuple[str, str, dict[str, Any], str]) -> str:
    return build_candidate(*job)


def _expected(task: TuningTask, rounds: list[list[float]]) -> list[float]:
    """Expected seconds of each round, of those of its inputs."""
    return (np.array(rounds) @ [lists.share for lists in task.inputs]).tolist()


def _run_remote(job: tuple[str, Devices]) -> list[list[float]]:
    folder, devices = job
    return run_remote(folder, devices.tracker, devices.key)


def _map(
    pool: PopenPoolExecutor, function: Any, jobs: list[Any], timeout_s: float, doing: str
) -> Iterator[tuple[Any, str | None]]:
    """(Value, None), or (None, why not) for each job."""
    for result in pool.map_with_error_catching(function, jobs):
        yield _outcome(result, timeout_s, doing)


def _outcome(result: MapResult, timeout_s: float, doing: str) -> tuple[Any, str | None]:
    if result.status == StatusKind.COMPLETE:
        return result.value, None
    if result.status == StatusKind.TIMEOUT:
        return None, f"{doing} took more than {timeout_s:.0f} s"
    lines = str(result.value).strip().splitlines() or [type(result.value).__name__]
    return None, f"{doing} failed: {lines[-1].strip()}"
