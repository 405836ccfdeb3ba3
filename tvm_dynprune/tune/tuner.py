# SPDX-License-Identifier: Apache-2.0
"""Tune a network's kernels: MetaSchedule's search, scheduler and cost model over our spaces."""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.s_tir import meta_schedule as ms

from tvm_dynprune.errors import DeviceError, ToolError, TuningError
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.soc import Soc
from tvm_dynprune.tune.features import ScheduleFeatures
from tvm_dynprune.tune.finals import play_finals
from tvm_dynprune.tune.log import (
    FINALS,
    TRIALS,
    RunInfo,
    Trial,
    TuningLog,
    rank_trials,
    read_trials,
)
from tvm_dynprune.tune.mutate import MutateDecision
from tvm_dynprune.tune.open_cost import append_costs, fit, forms_of, read_costs
from tvm_dynprune.tune.progress import Budget, Progress, TaskProgress
from tvm_dynprune.tune.space import design_spaces, own_choice, workload_module
from tvm_dynprune.tune.task import TuningTask
from tvm_dynprune.tune.workers import CandidateBuilder, CandidateRunner, Devices, Workers

TRIALS_AT_ONCE = 8
_WARMUP_TRIALS = 16  # of all tasks, before the cost model is trained
_NO_LIMIT = 10**6  # trials: our own budget counts those of earlier runs, too


def tune(
    tasks: Sequence[TuningTask],
    soc: Soc,
    folder: Path,
    info: RunInfo,
    budget: Budget,
    on_progress: Callable[[Progress], None] = lambda _: None,
    devices: Devices | None = None,
) -> Progress:
    """Tune `tasks` and write what comes of it to `folder`.

    The compiler's own choices are measured first; after the budget is spent come the finals, and
    time against open channels. Trials that the folder's log holds are taken from there; they count,
    so that a run that is resumed ends where it would have.
    SIGINT stops after the trials that are being measured.

    Parameters
    ----------
    tasks
        What `extract_tasks` returned.
    soc
        This machine, or one of its kind.
    folder
        Log to write, or to continue.
    info
        What it is a log of.
    budget
        When to stop.
    on_progress
        Called after every trial.
    devices
        Where kernels run; None for here.

    Raises
    ------
    LogError
        `folder` holds a log of something else.
    TuningError
        No trial of a kernel ran.
    DeviceError
        The devices are gone.
    ToolError
        XGBoost is not installed.
    """
    _need_xgboost()
    log = TuningLog(folder, info)
    try:
        with _interruptible() as interrupted:
            session = _Session(list(tasks), soc, log, budget, on_progress, interrupted, devices)
            try:
                session.run(info.seed)
            finally:
                session.workers.close()
    finally:
        log.close()
    for one in session.progress.tasks:
        if one.trials and one.failures == one.trials:
            raise TuningError(
                f"{', '.join(one.task.layers)}: all {one.trials} trials failed, the last one: "
                f"{one.last_failure}; {folder / TRIALS} has them all"
            )
    return session.progress


class _StopTuning(Exception):  # noqa: N818
    """No error."""


class _Session:
    def __init__(
        self,
        tasks: list[TuningTask],
        soc: Soc,
        log: TuningLog,
        budget: Budget,
        on_progress: Callable[[Progress], None],
        interrupted: Callable[[], bool],
        devices: Devices | None,
    ) -> None:
        self.log, self.budget = log, budget
        self.on_progress, self.interrupted = on_progress, interrupted
        self.tasks = [TaskProgress(task) for task in tasks]
        self.target = {"kind": "llvm", "num-cores": 1, **soc.target}
        self.workers = Workers(self.target, cores(), self.find, self.record, devices)
        self._by_workload = {workload_key(one.task.spec): one for one in self.tasks}
        self._stopped = False
        self.finals_played = self.costs_measured = 0

    @property
    def progress(self) -> Progress:
        elapsed_s, unit = self.log.elapsed_s, self.log.info.unit
        stages = self.finals_played, self.costs_measured
        return Progress(self.tasks, elapsed_s, self.budget, unit, *stages)

    def run(self, seed: int) -> None:
        """The search, until the budget is spent, then time against open channels."""
        try:
            try:
                self._own_choices()
                self._search(seed)
            except Exception:
                # What comes back through C++ is another exception.
                if not self._stopped:
                    raise
            if self.log.info.unit == "seconds":  # instructions are exact
                self._play_finals()
            self._measure_costs()
        except Exception:
            if self.workers.lost:
                raise DeviceError(
                    f"no device ran a trial, {self.workers.lost}; {self.log.folder} has all trials "
                    "before: tune --resume goes on from there"
                ) from None
            raise

    def _own_choices(self) -> None:
        """What there is to beat."""
        own = [(one.task, own_choice(one.task)) for one in self.tasks]
        try:
            for start in range(0, len(own), TRIALS_AT_ONCE):
                built = self.workers.build(own[start : start + TRIALS_AT_ONCE])
                self.workers.run([folder for folder, failure in built if failure is None])
        finally:
            for one in self.tasks:
                one.own_s = one.best_s

    def _play_finals(self) -> None:
        """The fastest schedules of each kernel once more, in turns."""

        def count() -> None:
            self.finals_played += 1
            self.on_progress(self.progress)

        tasks = [one.task for one in self.tasks]
        play_finals(tasks, self.log, self.workers, count, self.interrupted)

    def _measure_costs(self) -> None:
        """Time against open channels, of the kernels whose times the log does not hold yet."""
        known = {(trial.task, trial.schedule) for trial in read_costs(self.log.folder)}
        ranked = rank_trials(self.log.trials, read_trials(self.log.folder, FINALS))
        for one in self.tasks:
            if self.interrupted():
                return
            forms, key = forms_of(one.task, ranked), workload_key(one.task.spec)
            if any((key, form.schedule.to_json()) not in known for form in forms):
                timed = self.workers.time_inputs([(form.task, form.schedule) for form in forms])
                fits = [fit(form, one.task, *t) for form, t in zip(forms, timed, strict=True)]
                append_costs(self.log.folder, fits)
            self.costs_measured += 1
            self.on_progress(self.progress)

    def _search(self, seed: int) -> None:
        np.random.seed(seed)  # XGBModel's guesses before it is trained
        contexts = [self._context(one.task, seed + i) for i, one in enumerate(self.tasks, 1)]
        features: Any = ScheduleFeatures()
        cost_model: Any = ms.cost_model.XGBModel(
            extractor=features, num_warmup_samples=_WARMUP_TRIALS, num_tuning_cores=1
        )
        builder: Any = CandidateBuilder(self.workers)
        runner: Any = CandidateRunner(self.workers)
        ms.tune.tune_tasks(
            tasks=contexts,
            task_weights=[float(len(one.task.layers)) for one in self.tasks],
            work_dir=str(self.log.folder),
            max_trials_global=_NO_LIMIT,
            num_trials_per_iter=TRIALS_AT_ONCE,
            builder=builder,
            runner=runner,
            database=ms.database.MemoryDatabase(),  # `TuningLog` writes the one that stays
            cost_model=cost_model,
            measure_callbacks=[
                ms.measure_callback.AddToDatabase(),
                ms.measure_callback.UpdateCostModel(),
            ],
            task_scheduler=ms.task_scheduler.GradientBased(seed=seed),
        )

    def _context(self, task: TuningTask, seed: int) -> ms.TuneContext:
        mutate: Any = MutateDecision(seed)
        space = ms.space_generator.ScheduleFn(
            design_spaces, sch_rules=[], postprocs=[], mutator_probs={mutate: 1.0}
        )
        quiet = logging.getLogger("tvm_dynprune.tune.metaschedule")
        quiet.setLevel(logging.ERROR)
        return ms.TuneContext(
            mod=workload_module(task),
            target=tvm.target.Target(self.target),
            space_generator=space,
            search_strategy=ms.search_strategy.EvolutionarySearch(
                population_size=64, init_min_unmeasured=16, genetic_num_iters=2
            ),
            task_name=task.layers[0],
            logger=quiet,
            rand_state=seed,
            num_threads=1,
        )

    def find(self, task: TuningTask, schedule: Schedule) -> Trial | None:
        """The trial of an earlier run; it counts, once."""
        trial = self.log.find(task, schedule)
        if trial is not None:
            self._count(trial)
        return trial

    def record(
        self, task: TuningTask, schedule: Schedule, seconds: list[float] | None, failure: str | None
    ) -> Trial:
        """Write a trial down, show it, and stop if it is time to."""
        trial = self.log.append(task, schedule, seconds, failure)
        self._count(trial)
        return trial

    def _count(self, trial: Trial) -> None:
        one = self._by_workload[trial.task]
        if trial.schedule in one.seen:
            return
        one.seen.add(trial.schedule)
        one.failures += trial.seconds is None
        one.last_failure = trial.failure or one.last_failure
        one.best_s = min(one.best_s, trial.expected_s)
        self.on_progress(self.progress)
        minutes, trials = self.budget.minutes, self.budget.trials
        late = minutes is not None and self.log.elapsed_s >= 60 * minutes
        done = trials is not None and self.progress.trials >= trials
        if late or done or self.interrupted():
            self._stopped = True
            raise _StopTuning


def _need_xgboost() -> None:
    try:
        import xgboost  # noqa: F401
    except ImportError:
        raise ToolError("tune needs XGBoost: pip install 'tvm-dynprune[tune]'") from None


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT came; a second one interrupts as always."""
    came = []

    def note(*_: object) -> None:
        came.append(1)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)
