# SPDX-License-Identifier: Apache-2.0
"""Activation: the elementwise functions that a kernel applies to its accumulators."""

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T


@dataclass(frozen=True)
class Activation:
    """``min(max(x, low), high)`` where the bounds are given; ReLU is (0, None), ReLU6 (0, 6)."""

    low: float | None = 0.0
    high: float | None = None

    def __call__(self, value):
        """The activation of a float32 TIR expression."""
        if self.low is not None:
            value = tirx.max(value, T.float32(self.low))
        if self.high is not None:
            value = tirx.min(value, T.float32(self.high))
        return value
