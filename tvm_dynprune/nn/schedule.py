# SPDX-License-Identifier: Apache-2.0
"""How learning rate, gates and budget change from the start of training (0) to its end (1)."""

import math
from dataclasses import dataclass

from torch import nn

from tvm_dynprune.nn.gates import GateMode, set_gates

WARM_UP = 0.15
"""Until here the learning rate rises linearly from a twentieth, then falls as half a cosine."""
GATES_OPEN, GATES_SOFT, BUDGET_REACHED = 0.10, 0.20, 0.50
"""Gates: open until the first, soft until the second, then hard; the target falls to the third."""
SLOPE_START, SLOPE_END = 1.0, 4.0


@dataclass(frozen=True)
class GateSchedule:
    """The state of all gates at one moment of training.

    Attributes
    ----------
    mode, slope
        As for `set_gates`.
    target
        Wanted share of the dense MACs at this moment; None while the gates are open.
    """

    mode: GateMode
    slope: float
    target: float | None

    def apply(self, model: nn.Module) -> None:
        """Set the model's gates."""
        set_gates(model, self.mode, slope=self.slope)


def learning_rate(progress: float, peak: float) -> float:
    """Return the learning rate at `progress` in [0, 1]."""
    if progress < WARM_UP:
        return peak * (0.05 + 0.95 * progress / WARM_UP)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def gate_schedule(progress: float, budget: float) -> GateSchedule:
    """Return what the gates do at `progress` in [0, 1] for a final share `budget` of the MACs."""
    slope = SLOPE_START * (SLOPE_END / SLOPE_START) ** progress
    if progress < GATES_OPEN:
        return GateSchedule("open", slope, None)
    fallen = min((progress - GATES_OPEN) / (BUDGET_REACHED - GATES_OPEN), 1.0)
    mode: GateMode = "soft" if progress < GATES_SOFT else "hard"
    return GateSchedule(mode, slope, 1 - fallen * (1 - budget))
