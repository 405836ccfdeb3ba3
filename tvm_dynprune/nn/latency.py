# SPDX-License-Identifier: Apache-2.0
"""What a network's kernels are expected to cost on a SoC, in terms of its gates' decisions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Opened = Mapping[str, tuple[Tensor, Tensor]]
"""By layer: open shares of its input and its output channels, (N,) or (1,) each."""


@dataclass(frozen=True)
class LatencyTable:
    """Costs of a network's layers on one SoC, from `tvm_dynprune.latency.latency_table`.

    The unit is one vector multiply-add of one core.

    Attributes
    ----------
    dense
        Cost of the network without gates.
    fixed
        What the gates themselves cost, whatever they decide.
    layers
        By layer, then by algorithm: costs with (input, output) channels (closed, closed), (closed,
        open), (open, closed) and (open, open). Between them a cost is linear in each share.
    """

    dense: float
    fixed: float
    layers: dict[str, dict[str, list[float]]]

    def fraction(self, opened: Opened, mean: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the expected share of the dense cost, a differentiable scalar.

        A layer is computed by the algorithm that is cheapest for the whole batch, as the compiler
        chooses one for all inputs.

        Parameters
        ----------
        opened
            Of every layer of the table, from `MacPlan.opened`.
        mean
            Applied to the mean costs of the batch, by which algorithms are chosen: where the batch
            is one process's share, the mean over the processes.
        """
        layers = [self._costs(name, *opened[name]) for name in self.layers]
        costs = torch.cat(layers) if mean is None else mean(torch.cat(layers))
        cheapest = [each.min().float() for each in costs.split([len(layer) for layer in layers])]
        return (torch.stack(cheapest).sum() + self.fixed) / self.dense

    def _costs(self, name: str, open_in: Tensor, open_out: Tensor) -> Tensor:
        """Mean cost of a layer over a batch, by algorithm."""
        first, second = open_in.mean(), open_out.mean()
        product = (open_in * open_out).mean()
        costs = []
        for none, by_output, by_input, whole in self.layers[name].values():
            interaction = whole - by_input - by_output + none
            cost = none + (by_input - none) * first + (by_output - none) * second
            costs.append(cost + interaction * product)
        return torch.stack(costs)
