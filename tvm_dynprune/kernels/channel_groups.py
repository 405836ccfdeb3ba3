# SPDX-License-Identifier: Apache-2.0
"""The channel groups of a grouped convolution, as whole blocks that a kernel computes apart.

Narrow groups are merged until both of their sides are whole blocks. Between channels of groups
that were merged the weights are 0: more is multiplied, but in whole vectors. Where that would take
too many, since groups and blocks do not divide each other, each block of output channels reads a
`Run` of input channels instead, those of its groups.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx


@dataclass(frozen=True)
class Run:
    """The `channels` of the input that each block of `lanes` output channels reads.

    Of groups with `each_in` and `each_out` channels; the input has `channels_in`.
    """

    channels: int
    channels_in: int
    each_in: int
    each_out: int
    lanes: int

    def start(self, block: Any) -> Any:
        """The first one, of a block's number or a TIR expression of it."""
        last = self.channels_in - self.channels
        if isinstance(block, int):
            return min(block * self.lanes // self.each_out * self.each_in, last)
        return tirx.min(tirx.floordiv(block * self.lanes, self.each_out) * self.each_in, last)


def run_of(groups: int, channels_in: int, channels_out: int, lanes: int) -> Run:
    """The shortest run that has what any block of output channels reads."""
    each_in, each_out = channels_in // groups, channels_out // groups
    most = max(
        (min(first + lanes, channels_out) - 1) // each_out - first // each_out + 1
        for first in range(0, channels_out, lanes)
    )
    return Run(most * each_in, channels_in, each_in, each_out, lanes)


def groups_or_run(
    groups: int, channels_in: int, channels_out: int, lanes: int
) -> tuple[int, Run | None]:
    """Merged groups, or 1 and a run: whichever multiplies less."""
    sizes = groups, channels_in, channels_out, lanes
    merged, run = merged_groups(*sizes), run_of(*sizes)
    return (1, run) if run.channels < channels_in // merged else (merged, None)


def merged_groups(groups: int, channels_in: int, channels_out: int, lanes: int) -> int:
    """Most groups into which `groups` can be merged that are whole blocks of channels, or 1."""
    fitting = (
        count
        for count in range(groups, 1, -1)
        if groups % count == 0
        and channels_in % (count * lanes) == 0
        and channels_out % (count * lanes) == 0
    )
    return next(fitting, 1)


def grouped_weight(weight: np.ndarray, groups: int, merged: int, run: Run | None) -> np.ndarray:
    """Weights (C_out, C_in / groups, KH, KW) with all input channels that are walked for each."""
    return _merge_weight(weight, groups, merged) if run is None else _weight_of_run(weight, run)


def _merge_weight(weight: np.ndarray, groups: int, merged: int) -> np.ndarray:
    """Weights (C_out, C_in / groups, KH, KW) as (C_out, C_in / merged, KH, KW)."""
    together = groups // merged
    each_in, each_out = weight.shape[1], weight.shape[0] // groups
    split = weight.reshape(merged, together, each_out, *weight.shape[1:])
    whole = np.zeros((merged, together, each_out, together, *weight.shape[1:]), weight.dtype)
    for k in range(together):
        whole[:, k, :, k] = split[:, k]
    return whole.reshape(weight.shape[0], together * each_in, *weight.shape[2:])


def _weight_of_run(weight: np.ndarray, run: Run) -> np.ndarray:
    """Weights (C_out, C_in / groups, KH, KW) as (C_out, channels of the run, KH, KW)."""
    whole = np.zeros((weight.shape[0], run.channels, *weight.shape[2:]), weight.dtype)
    for out, own in enumerate(weight):
        first = out // run.each_out * run.each_in - run.start(out // run.lanes)
        whole[out, first : first + run.each_in] = own
    return whole
