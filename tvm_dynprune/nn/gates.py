# SPDX-License-Identifier: Apache-2.0
"""What all gates share, and how a whole model's gates are set; their kinds: `gate_kinds`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

GateMode = Literal["open", "soft", "hard"]


class Gate(nn.Module, ABC):
    """Decide from a convolution's input which of its output channel groups are needed.

    ::

        logits = self.logits(x)                           # (N, G, 1, 1)
        open   = logits > threshold                       # hard
        open   = sigmoid(slope * (logits - threshold))    # soft
        mask   = open, each repeated group_size times     # (N, G * group_size, 1, 1)

    ``hard`` in training has the soft value's gradient (straight-through: Bengio, Léonard,
    Courville, arXiv:1308.3432); in evaluation there is nothing but the operations above, which is
    what an export sees. ``open`` lets everything through: for warm-up and for a dense run.

    Parameters
    ----------
    in_channels
        Channels C_in of the tensor that the gate reads.
    out_channels
        Channels of the mask, G * group_size.
    group_size
        Neighbouring channels that open and close together; divides `out_channels`.

    Attributes
    ----------
    threshold
        Buffer of one element, saved with the weights; it may be changed at any time.
    slope
        Steepness of the sigmoid, in 1/logit. Set by the trainer, not saved.
    gain
        Weight of this gate in `compute_penalty`.
    switches
        (N, G), the decisions of the last forward pass in training, with their gradient.
    margins
        (N, G), ``slope * (logits - threshold)`` of the same pass.
    """

    threshold: Tensor

    def __init__(self, in_channels: int, out_channels: int, group_size: int) -> None:
        super().__init__()
        if group_size < 1 or out_channels % group_size:
            raise ValueError(f"group_size {group_size} does not divide {out_channels} channels")
        self.in_channels = in_channels
        self.group_size = group_size
        self.groups = out_channels // group_size
        self.register_buffer("threshold", torch.zeros(1))
        self.mode: GateMode = "hard"
        self.slope = 1.0
        self.gain = 1.0
        self.switches: Tensor | None = None
        self.margins: Tensor | None = None

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (N, G, 1, 1) of an input (N, C_in, H, W)."""

    @abstractmethod
    def spread(self) -> None:
        """Set weights to train from: random, and each group's bias another.

        Equal groups would all close in the same step, and with them the whole layer.
        """

    @abstractmethod
    def macs(self, pixels: int) -> tuple[int, int]:
        """MACs for each open input channel of `pixels` pixels, and those that come on top."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mask (N, C_out, 1, 1) for an input (N, C_in, H, W), in x's dtype."""
        if self.mode == "open":
            return x.new_ones(x.shape[0], self.groups * self.group_size, 1, 1)
        if self.training:
            switches = self._switches_with_gradient(x)
            self.switches = switches[:, :, 0, 0]
        elif self.mode == "soft":
            switches = torch.sigmoid(self.slope * (self.logits(x) - self.threshold))
        else:
            switches = (self.logits(x) > self.threshold).to(x.dtype)
        return self._repeat(switches.to(x.dtype))

    def _switches_with_gradient(self, x: Tensor) -> Tensor:
        # Without autocast: a threshold decides on the last bits of the logits.
        with torch.autocast(x.device.type, enabled=False):
            logits = self._training_logits(x.float())
            margins = self.slope * (logits - self.threshold)
            self.margins = margins[:, :, 0, 0]
            soft = torch.sigmoid(margins)
            if self.mode == "soft":
                return soft
            hard = (logits > self.threshold).float()
            return hard + (soft - soft.detach())

    def _training_logits(self, x: Tensor) -> Tensor:
        return self.logits(x)

    def _repeat(self, switches: Tensor) -> Tensor:
        if self.group_size == 1:
            return switches
        return switches.unsqueeze(2).expand(-1, -1, self.group_size, -1, -1).flatten(1, 2)

    def extra_repr(self) -> str:
        """Name the sizes that ``print(model)`` shows."""
        return f"groups={self.groups}, group_size={self.group_size}, mode={self.mode}"


def gates_of(model: nn.Module) -> dict[str, Gate]:
    """Return the gates of a model by module name (``gates.<layer>``), in the model's order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Gate)}


def set_gates(model: nn.Module, mode: GateMode, *, slope: float | None = None) -> None:
    """Set the mode of all of a model's gates and, if given, the slope of their sigmoids."""
    for gate in gates_of(model).values():
        gate.mode = mode
        if slope is not None:
            gate.slope = slope


def set_thresholds(model: nn.Module, thresholds: float | Mapping[str, float]) -> None:
    """Set the thresholds of a model's gates.

    Parameters
    ----------
    model
        A model with gates.
    thresholds
        In logits: one number for all gates, or a number by gate name as `gates_of` gives it (gates
        not named keep theirs).

    Raises
    ------
    ValueError
        A name is no gate of the model.
    """
    gates = gates_of(model)
    if not isinstance(thresholds, Mapping):
        thresholds = dict.fromkeys(gates, thresholds)
    for name, value in thresholds.items():
        if name not in gates:
            raise ValueError(f"no gate {name!r}: the model has {', '.join(gates) or 'none'}")
        gates[name].threshold.fill_(value)
