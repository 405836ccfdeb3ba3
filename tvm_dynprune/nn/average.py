# SPDX-License-Identifier: Apache-2.0
"""Moving average of a model's weights and statistics."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of everything floating in a model's state dict.

    Polyak, Juditsky: "Acceleration of Stochastic Approximation by Averaging" (1992). The first
    steps count less: the decay of step n is min(decay, (1 + n) / (10 + n)).

    Parameters
    ----------
    model
        Whose state the average starts from.
    decay
        Share of the average that stays in each step, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.values = {name: value.clone() for name, value in _floating(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the model's state."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        current = _floating(model)
        torch._foreach_lerp_(list(self.values.values()), list(current.values()), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def restore(self, values: Mapping[str, Tensor], steps: int) -> None:
        """Go on from saved `values` after `steps` updates."""
        for name, value in values.items():
            self.values[name].copy_(value)
        self.steps = steps

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let the model have the averaged state within the block."""
        own = {name: value.clone() for name, value in _floating(model).items()}
        _copy(self.values, model)
        try:
            yield
        finally:
            _copy(own, model)


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return {name: v for name, v in model.state_dict().items() if v.is_floating_point()}


def _copy(values: Mapping[str, Tensor], model: nn.Module) -> None:
    with torch.no_grad():
        for name, value in _floating(model).items():
            value.copy_(values[name])
