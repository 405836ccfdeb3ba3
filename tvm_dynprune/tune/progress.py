# SPDX-License-Identifier: Apache-2.0
"""How far tuning has come."""

from dataclasses import dataclass, field

from tvm_dynprune.tune.task import TuningTask


@dataclass(frozen=True)
class Budget:
    """When to stop: after so many trials, or minutes, whichever comes first."""

    trials: int | None = None
    minutes: float | None = None


@dataclass
class TaskProgress:
    """How far the tuning of one task has come."""

    task: TuningTask
    seen: set[str] = field(default_factory=set)  # schedules that were tried
    failures: int = 0
    own_s: float = float("inf")
    best_s: float = float("inf")
    last_failure: str = ""

    @property
    def trials(self) -> int:
        """How many schedules were tried."""
        return len(self.seen)

    @property
    def gain(self) -> float:
        """Time of the compiler's own choice over the best time."""
        return self.own_s / self.best_s


@dataclass(frozen=True)
class Progress:
    """How far tuning has come.

    `unit` is that of the log (`RunInfo`), `finals_played` the number of tasks whose fastest
    schedules were timed again, `costs_measured` of those whose time against open channels was.
    """

    tasks: list[TaskProgress]
    elapsed_s: float
    budget: Budget
    unit: str = "seconds"
    finals_played: int = 0
    costs_measured: int = 0

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
