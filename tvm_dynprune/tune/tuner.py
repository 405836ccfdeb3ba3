# SPDX-License-Identifier: Apache-2.0
"""Tune a network's kernels: MetaSchedule's search, scheduler and cost model over our spaces."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import Trace

from tvm_dynprune.errors import ToolError, TuningError
from tvm_dynprune.soc import Soc
from tvm_dynprune.tune.features import ScheduleFeatures
from tvm_dynprune.tune.log import TRIALS, RunInfo, Trial, TuningLog
from tvm_dynprune.tune.space import design_spaces, own_choice, task_of, workload_module
from tvm_dynprune.tune.task import TuningTask
from tvm_dynprune.tune.workers import CandidateBuilder, LocalRunner, candidate_key, is_known

TRIALS_AT_ONCE = 8
_WARMUP_TRIALS = 16  # of all tasks, before the cost model is trained
_CANCELLED = "tuning was asked to stop"


@dataclass(frozen=True)
class Budget:
    """When to stop: after so many trials, or minutes, whichever comes first."""

    trials: int | None = None
    minutes: float | None = None


@dataclass
class TaskProgress:
    """How far the tuning of one task has come."""

    task: TuningTask
    trials: int = 0
    failures: int = 0
    own_s: float = float("inf")
    best_s: float = float("inf")
    last_failure: str = ""

    @property
    def gain(self) -> float:
        """Time of the compiler's own choice over the best time."""
        return self.own_s / self.best_s


@dataclass(frozen=True)
class Progress:
    """How far tuning has come."""

    tasks: list[TaskProgress]
    elapsed_s: float
    budget: Budget

    @property
    def trials(self) -> int:
        """Of all tasks."""
        return sum(task.trials for task in self.tasks)

    @property
    def expected_s(self) -> float:
        """Time of all kernels for one input, at their best."""
        return sum(task.best_s * len(task.task.layers) for task in self.tasks)

    @property
    def own_s(self) -> float:
        """The same by the compiler's own choices."""
        return sum(task.own_s * len(task.task.layers) for task in self.tasks)


def tune(
    tasks: Sequence[TuningTask],
    soc: Soc,
    folder: Path,
    info: RunInfo,
    budget: Budget,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Tune `tasks` and write what comes of it to `folder`.

    The compiler's own choices are measured first. Trials that the folder's log holds are taken
    from there; they count, so that a run that is resumed ends where it would have.
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
        Called after every batch of trials.

    Raises
    ------
    LogError
        `folder` holds a log of something else.
    TuningError
        No trial of a kernel ran.
    ToolError
        XGBoost is not installed.
    """
    _need_xgboost()
    log = TuningLog(folder, info)
    try:
        with _interruptible() as interrupted:
            session = _Session(list(tasks), soc, log, budget, on_progress, interrupted)
            session.run(info.seed)
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
    ) -> None:
        self.soc, self.log, self.budget = soc, log, budget
        self.on_progress, self.interrupted = on_progress, interrupted
        self.tasks = [TaskProgress(task) for task in tasks]
        self._started = time.monotonic() - (log.trials[-1].at_s if log.trials else 0.0)
        known = {(t.task, t.schedule): n for n, t in enumerate(log.trials)}
        cores = _cores()
        self.target = {"kind": "llvm", "num-cores": 1, **soc.target}
        self.builder = CandidateBuilder(self.target, known, cores)
        self.runner = LocalRunner(log.trials, cores[-1:])
        self._stopped = False

    @property
    def progress(self) -> Progress:
        return Progress(self.tasks, time.monotonic() - self._started, self.budget)

    def run(self, seed: int) -> None:
        np.random.seed(seed)  # XGBModel's guesses before it is trained
        try:
            self._measure_own_choices()
            self._search(seed)
        except _StopTuning:
            pass
        except Exception:
            if not self._stopped:  # through C++ an exception comes back as another
                raise

    def _measure_own_choices(self) -> None:
        candidates = [own_choice(one.task) for one in self.tasks]
        for start in range(0, len(candidates), TRIALS_AT_ONCE):
            some = candidates[start : start + TRIALS_AT_ONCE]
            target = tvm.target.Target(self.target)
            inputs = [ms.builder.BuilderInput(c.mod, target) for c in some]
            built = self.builder.build(inputs)
            results = _run(self.runner, built)
            for task_id, (candidate, b, r) in enumerate(
                zip(some, built, results, strict=True), start
            ):
                self._record(task_id, candidate.mod, candidate.trace, b, r, own=True)
            self.report()

    def _search(self, seed: int) -> None:
        contexts = [self._context(one.task, seed + i) for i, one in enumerate(self.tasks, 1)]
        features: Any = ScheduleFeatures()
        cost_model: Any = ms.cost_model.XGBModel(
            extractor=features, num_warmup_samples=_WARMUP_TRIALS, num_tuning_cores=1
        )
        builder: Any = self.builder
        runner: Any = self.runner
        record: Any = _Record(self)
        left = None if self.budget.trials is None else self.budget.trials - self.progress.trials
        ms.tune.tune_tasks(
            tasks=contexts,
            task_weights=[float(len(one.task.layers)) for one in self.tasks],
            work_dir=str(self.log.folder),
            max_trials_global=left if left is not None else 10**6,
            num_trials_per_iter=TRIALS_AT_ONCE,
            builder=builder,
            runner=runner,
            database=self.log.database,
            cost_model=cost_model,
            measure_callbacks=[record, ms.measure_callback.UpdateCostModel()],
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

    def record(
        self,
        task_id: int,
        candidates: Sequence[ms.MeasureCandidate],
        built: Sequence[ms.builder.BuilderResult],
        ran: Sequence[ms.runner.RunnerResult],
    ) -> None:
        """Write down a batch, show it, and stop if it is time to."""
        for candidate, b, r in zip(candidates, built, ran, strict=True):
            self._record(task_id, candidate.sch.mod, candidate.sch.trace, b, r)
        self.report()

    def _record(
        self, task_id: int, module: tvm.IRModule, trace: Any, built: Any, ran: Any, *, own=False
    ) -> None:
        one = self.tasks[task_id]
        seconds = [float(s) for s in ran.run_secs] if ran.run_secs is not None else None
        failure = built.error_msg or ran.error_msg
        workload, schedule = candidate_key(module)
        at_s = time.monotonic() - self._started
        trial = Trial(workload, schedule, at_s, seconds, None if failure is None else str(failure))
        if not is_known(built):
            self.log.append(trial)
            if seconds:
                self._commit(module, trace, seconds)
        one.trials += 1
        one.failures += seconds is None
        one.last_failure = trial.failure or one.last_failure
        one.best_s = min(one.best_s, trial.expected_s)
        if own:
            one.own_s = trial.expected_s

    def _commit(self, module: tvm.IRModule, trace: Any, seconds: list[float]) -> None:
        workload = self.log.database.commit_workload(workload_module(task_of(module)))
        arguments = ms.arg_info.ArgInfo.from_entry_func(module, remove_preproc=True)
        target = tvm.target.Target(self.target)
        record = ms.database.TuningRecord(trace, workload, seconds, target, arguments)
        self.log.database.commit_tuning_record(record)

    def report(self) -> None:
        """Show how far it has come; stops where the time is up, or somebody asked to."""
        self.on_progress(self.progress)
        minutes, trials = self.budget.minutes, self.budget.trials
        late = minutes is not None and self.progress.elapsed_s >= 60 * minutes
        done = trials is not None and self.progress.trials >= trials
        if late or done or self.interrupted():
            self._stopped = True
            raise _StopTuning(_CANCELLED)


@derived_object
class _Record(ms.measure_callback.PyMeasureCallback):
    def __init__(self, session: _Session) -> None:
        super().__init__()
        self.session = session

    def apply(self, task_scheduler, task_id, measure_candidates, builder_results, runner_results):
        self.session.record(task_id, measure_candidates, builder_results, runner_results)


@derived_object
class MutateDecision(ms.mutator.PyMutator):
    """Decide one of a candidate's decisions anew."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self._rng = seed, np.random.default_rng(seed)

    def _initialize_with_tune_context(self, context: ms.TuneContext) -> None:
        """Nothing depends on it."""

    def apply(self, trace: Trace, _) -> Trace | None:
        """Another trace; None if there is nothing to decide."""
        sampled = [inst for inst in trace.insts if inst.kind.name == "SampleCategorical"]
        if not sampled:
            return None
        chosen = sampled[self._rng.integers(len(sampled))]
        before, count = int(trace.decisions[chosen]), len(chosen.attrs[0])
        decision = (before + int(self._rng.integers(1, count))) % count
        return trace.with_decision(chosen, decision, True)

    def clone(self) -> Any:
        """With the same seed."""
        return MutateDecision(self.seed)


def _run(runner: LocalRunner, built: Sequence[ms.builder.BuilderResult]) -> list[Any]:
    """What ran, or why a candidate was not even built."""
    inputs = [
        ms.runner.RunnerInput(str(result.artifact_path), "llvm", [])
        for result in built
        if result.error_msg is None
    ]
    futures = iter(runner.run(inputs))
    failed = [ms.runner.RunnerResult(None, result.error_msg) for result in built]
    return [
        next(futures).result() if result.error_msg is None else failure
        for result, failure in zip(built, failed, strict=True)
    ]


def _need_xgboost() -> None:
    try:
        import xgboost  # noqa: F401
    except ImportError:
        raise ToolError("tune needs XGBoost: pip install 'tvm-dynprune[tune]'") from None


def _cores() -> list[int]:
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
