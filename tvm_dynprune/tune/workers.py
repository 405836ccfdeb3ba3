# SPDX-License-Identifier: Apache-2.0
"""MetaSchedule's builder and runner on top of `measure`: worker processes that may hang or crash.

A candidate that an earlier run of the same log measured is neither built nor run again: that is
how a run is resumed, by going through the same search.
"""

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.support.popen_pool import MapResult, PopenPoolExecutor, StatusKind

from tvm_dynprune.kernels.workload import workload_of
from tvm_dynprune.tune.log import Trial
from tvm_dynprune.tune.measure import build_candidate, run_candidate, start_worker
from tvm_dynprune.tune.space import schedule_of, task_of

BUILD_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 30.0
_KNOWN = "known:"  # instead of a folder: the number of a trial

Key = tuple[str, str]  # a task's workload, a schedule; both JSON


def candidate_key(candidate: Any) -> Key:
    """What a candidate module is known by."""
    return workload_of(task_of(candidate).spec), schedule_of(candidate).to_json()


@derived_object
class CandidateBuilder(ms.builder.PyBuilder):
    """Builds candidates in `workers` processes.

    Parameters
    ----------
    target
        As TVM takes it, with ``kind`` and ``num-cores``.
    known
        Trials that need no building.
    """

    def __init__(
        self, target: Mapping[str, Any], known: Mapping[Key, int], cores: Sequence[int]
    ) -> None:
        super().__init__()
        self.target, self.known = dict(target), known
        self._folder = tempfile.TemporaryDirectory(prefix="dynprune-tune-")
        self._pool = PopenPoolExecutor(
            max_workers=len(cores), timeout=BUILD_TIMEOUT_S, initializer=start_worker,
            initargs=(list(cores),),
        )  # fmt: skip

    def build(self, build_inputs: list[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        """Build each; a failure is a result with its reason."""
        keys = [candidate_key(item.mod) for item in build_inputs]
        jobs = []
        for item, key in zip(build_inputs, keys, strict=True):
            if key not in self.known:
                folder = tempfile.mkdtemp(dir=self._folder.name)
                jobs.append((task_of(item.mod).to_json(), key[1], self.target, folder))
        built = iter(_map(self._pool, _build, jobs, BUILD_TIMEOUT_S, "building"))
        return [
            ms.builder.BuilderResult(f"{_KNOWN}{self.known[key]}", None)
            if key in self.known
            else ms.builder.BuilderResult(*next(built))
            for key in keys
        ]


@derived_object
class LocalRunner(ms.runner.PyRunner):
    """Runs candidates one after the other in one process, bound to one core."""

    def __init__(self, trials: Sequence[Trial], cores: Sequence[int]) -> None:
        super().__init__()
        self.trials = trials
        self._pool = PopenPoolExecutor(
            max_workers=1, timeout=RUN_TIMEOUT_S, initializer=start_worker,
            initargs=(list(cores),),
        )  # fmt: skip

    def run(self, runner_inputs: list[ms.runner.RunnerInput]) -> list[Any]:
        """Run each; all are done when this returns, so that nothing disturbs the timing."""
        paths = [str(item.artifact_path) for item in runner_inputs]
        jobs = [path for path in paths if not path.startswith(_KNOWN)]
        ran = iter(_map(self._pool, run_candidate, jobs, RUN_TIMEOUT_S, "running"))
        results = []
        for path in paths:
            if path.startswith(_KNOWN):
                trial = self.trials[int(path.removeprefix(_KNOWN))]
                results.append((trial.seconds, trial.failure))
            else:
                results.append(next(ran))
                shutil.rmtree(path, ignore_errors=True)
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


def is_known(builder_result: ms.builder.BuilderResult) -> bool:
    """Whether a candidate was taken from the log."""
    return str(builder_result.artifact_path or "").startswith(_KNOWN)


def _build(job: tuple[str, str, dict[str, Any], str]) -> str:
    return build_candidate(*job)


def _map(
    pool: PopenPoolExecutor, function: Any, jobs: Iterable[Any], timeout_s: float, doing: str
) -> Iterable[tuple[Any, str | None]]:
    """(Value, None), or (None, why not) for each job."""
    for result in pool.map_with_error_catching(function, list(jobs)):
        yield _outcome(result, timeout_s, doing)


def _outcome(result: MapResult, timeout_s: float, doing: str) -> tuple[Any, str | None]:
    if result.status == StatusKind.COMPLETE:
        return result.value, None
    if result.status == StatusKind.TIMEOUT:
        return None, f"{doing} took more than {timeout_s:.0f} s"
    lines = str(result.value).strip().splitlines() or [type(result.value).__name__]
    return None, f"{doing} failed: {lines[-1].strip()}"
