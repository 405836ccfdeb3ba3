# SPDX-License-Identifier: Apache-2.0
"""How gates are trained: open first, then hard, their budget and slope annealed.

For a training loop of one's own::

    model = insert_gates(network, group_size=16)
    start_gates(model, (3, 32, 32), budget=0.4, steps=epochs * len(loader))
    for images, labels in ...:
        loss = cross_entropy(model(images), labels) + gate_loss(model)
        ...  # backward, optimiser
        step(model)
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

from tvm_dynprune.nn.config import ACCURATE_THRESHOLD
from tvm_dynprune.nn.gates import gates_of, set_gates, set_thresholds
from tvm_dynprune.nn.latency import LatencyTable
from tvm_dynprune.nn.loss import budget_loss, compute_penalty, floor_loss, stuck_loss
from tvm_dynprune.nn.macs import MacPlan, plan_macs

_SCHEDULE = "tvm_dynprune.gate_schedule"
_STUCK = 4.0  # margin at which the sigmoid has 7 % of its steepest slope


class GateSchedule:
    """What gates do, and what their loss is, after each share of a training.

    Parameters
    ----------
    plan
        The model's MACs, from `plan_macs`.
    budget, accurate_budget, latency, gain, gate_weight, floor, stuck_weight, warm_up, anneal, slope
        As in `TrainConfig`.
    """

    def __init__(
        self,
        plan: MacPlan,
        *,
        budget: float = 0.35,
        accurate_budget: float | None = None,
        latency: LatencyTable | None = None,
        gain: float | None = None,
        gate_weight: float = 5.0,
        floor: float = 0.15,
        stuck_weight: float = 0.02,
        warm_up: float = 0.1,
        anneal: float = 0.25,
        slope: tuple[float, float] = (1.0, 3.0),
    ) -> None:
        self.plan, self.gate_weight, self.floor = plan, gate_weight, floor
        self.budget, self.accurate_budget, self.latency = budget, accurate_budget, latency
        self.gain, self.stuck_weight = gain, stuck_weight
        self.warm_up, self.anneal, self.slope = warm_up, anneal, slope
        self.steps = self.steps_done = 0
        self._budget_now: float | None = None
        self._annealed = self._accurate = 0.0

    def set(self, model: nn.Module, done: float, accurate: float = 0.0) -> None:
        """Set a model's gates for a step after the share `done` of the training, in [0, 1].

        `accurate` in [0, 1] says where between threshold 0 and the lowest one the step is taken;
        without an `accurate_budget` thresholds stay as they are.
        """
        annealed = min(1.0, max(0.0, (done - self.warm_up) / self.anneal))
        self._annealed, self._accurate = annealed, accurate
        slope = self.slope[0] * (self.slope[1] / self.slope[0]) ** annealed
        is_open = done < self.warm_up
        set_gates(model, "open" if is_open else "hard", slope=slope)
        wanted = self.budget
        if self.accurate_budget is not None:
            set_thresholds(model, accurate * ACCURATE_THRESHOLD)
            wanted += accurate * (self.accurate_budget - self.budget)
        self._budget_now = None if is_open else 1 + (wanted - 1) * annealed

    def finish(self, model: nn.Module) -> None:
        """Leave the gates hard, and at threshold 0 if the schedule has moved it."""
        set_gates(model, "hard")
        if self.accurate_budget is not None:
            set_thresholds(model, 0.0)

    def loss(self, model: nn.Module) -> Tensor:
        """Scalar to add to the task loss; 0 while gates are open."""
        if self._budget_now is None:
            return torch.zeros(())
        floor = floor_loss(model, self.floor)
        if self.gain is None:
            wanted = budget_loss(model, self.plan, self._budget_now, self.latency)
            loss = self.gate_weight * (wanted + floor)
        else:
            penalty = self.gain * self._annealed * compute_penalty(model)
            loss = penalty + self.gate_weight * floor
        if self.accurate_budget is not None and self._accurate > 0:
            return loss  # with a lower threshold a gate may well be all open
        return loss + self.stuck_weight * stuck_loss(model, _STUCK)


def accuracy_wanted(step: int) -> float:
    """Where in the range of thresholds a step is taken: both ends in turns with what is between.

    The ends bound what is between: Yu, Huang: "Universally Slimmable Networks", arXiv:1903.05134.
    """
    between = (step // 3 * 0.618034) % 1.0  # evenly spread, whatever the number of steps
    return (0.0, 1.0, between)[step % 3]


def start_gates(
    model: fx.GraphModule, input_shape: tuple[int, int, int], *, steps: int, **options: Any
) -> None:
    """Make a gated model ready for a training of `steps` steps.

    Parameters
    ----------
    model
        What `insert_gates` returned; the schedule is kept in its ``meta``.
    input_shape
        (C, H, W) of its images.
    steps
        How often `step` will be called.
    **options
        Of `GateSchedule`: ``budget`` first of all.
    """
    schedule = GateSchedule(plan_macs(model, input_shape), **options)
    schedule.steps = steps
    model.meta[_SCHEDULE] = schedule
    for gate in gates_of(model).values():
        gate.spread()
    schedule.set(model, 0.0)


def gate_loss(model: fx.GraphModule) -> Tensor:
    """Return what to add to the task loss after a forward pass in training mode, a scalar.

    Raises
    ------
    RuntimeError
        `start_gates` has not been called.
    """
    return _schedule(model).loss(model)


def step(model: fx.GraphModule) -> None:
    """Set the gates for the next step; after the last one they are hard, at threshold 0.

    Raises
    ------
    RuntimeError
        `start_gates` has not been called.
    """
    schedule = _schedule(model)
    schedule.steps_done += 1
    if schedule.steps_done >= schedule.steps:
        schedule.finish(model)
    else:
        share = schedule.steps_done / schedule.steps
        schedule.set(model, share, accuracy_wanted(schedule.steps_done))


def _schedule(model: fx.GraphModule) -> GateSchedule:
    if _SCHEDULE not in model.meta:
        raise RuntimeError("the gates have no schedule: call start_gates before the training")
    return model.meta[_SCHEDULE]
