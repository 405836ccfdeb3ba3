# SPDX-License-Identifier: Apache-2.0
"""What a convolution kernel computes, and which output channels it visits.

Closed output channels are never visited, closed input channels never read.

Output channels are visited in one of four ways (`Conv2d.visit`):

==========  ========================================================================================
``all``     every block of `lanes` channels
``blocks``  the blocks that a list names: for group sizes that are a multiple of the lanes
``gather``  vectors put together from open channels (`gather`): for any other group size
``group``   the blocks of one channel group, given as a scalar: the branch of a Relax ``If``
==========  ========================================================================================
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tvm_dynprune.kernels.activation import Activation, Formula, factor_rows
from tvm_dynprune.kernels.channel_groups import Run
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.reduction import Reduction
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.tiling import SPARE_REGISTERS

_FEW_REGISTERS = 16  # those of x86 without AVX-512


@dataclass(frozen=True)
class Conv2d:
    """What one convolution kernel computes.

    ``y = after(before(conv(x, weight) + bias) * scale + residual)``; channels outside the output
    list become ``after(residual)``, or 0 without a residual, if `fill`, and stay unwritten if not.
    `by_lane` says that the target multiplies a vector by one lane of another in one instruction,
    `permutes` is LLVM's name of the instruction that picks a vector's lanes by another, if any.
    `pools` adds a second result, the mean of each channel of y; closed ones have that of their fill
    or 0. `in_place` writes y over the residual, whose closed channels so stay what they are.
    Of several `groups` of channels each reads its own only; they are whole blocks on both sides.
    With a `run` each block of output channels reads some of the input's instead.
    """

    x: FeatureMap
    y: FeatureMap
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]  # top, left; the rest follows from the size of y
    dilation: tuple[int, int]
    bias: bool = False
    before: Activation | Formula | None = None
    scale: bool = False
    residual: FeatureMap | None = None
    after: Activation | Formula | None = None
    open_in: bool = False  # walk a list of input channels, or of blocks of them
    unit_in: int = 1  # neighbouring input channels that open together
    visit: str = "all"
    group_blocks: int = 1  # group: blocks per channel group
    fill: bool = False
    pools: bool = False
    in_place: bool = False
    groups: int = 1
    run: Run | None = None
    schedule: Schedule = field(default_factory=Schedule)
    registers: int = 32
    by_lane: bool = False
    permutes: str = ""

    @property
    def factors(self) -> int:
        """Rows of numbers for each channel that the activations read."""
        return factor_rows(self.before) + factor_rows(self.after)

    @property
    def reduction(self) -> Reduction:
        """The loops of a direct convolution over input channels and window."""
        pixels = self.y.height * self.y.width
        sides = self.x, self.kernel, pixels, self.open_in, self.unit_in
        run = self.run.channels if self.run else 0
        return Reduction(*sides, few_registers=self.few_registers, groups=self.groups, run=run)

    @property
    def few_registers(self) -> bool:
        """Whether registers hold small tiles only, whose inputs and weights take long to load."""
        return self.registers <= _FEW_REGISTERS and not self.by_lane

    @property
    def by_input_block(self) -> bool:
        """Whether the list of open inputs is one of blocks."""
        return self.reduction.order == "blocks"

    @property
    def pairs(self) -> bool:
        """Whether two vectors of output channels are computed together.

        Each input that is loaded then serves two multiply-adds: cores that start two of these in a
        cycle can load no more than two vectors.
        """
        return not self.by_lane and self.visit != "group" and self.together(2) > 1

    def together(self, most: int) -> int:
        """How many vectors of output channels, at most, can be computed together.

        In several groups they are of one, also where a list leaves out some.
        """
        if self.run is not None:
            return 1
        if self.groups == 1:
            return min(most, self.y.blocks)
        blocks = 1 if self.visit == "blocks" else self.y.blocks // self.groups
        return max(count for count in range(1, most + 1) if blocks % count == 0)

    @property
    def sums(self) -> int:
        """Accumulators of one vector of output channels that stay in registers."""
        if self.by_lane:
            return self.registers - self.x.lanes - SPARE_REGISTERS
        if self.pairs:
            return (self.registers - SPARE_REGISTERS) // 2
        # With few, LLVM loads inputs that serve one multiply-add far ahead.
        return self.registers // 2 if self.few_registers else self.registers - SPARE_REGISTERS


def pack_channels(values: np.ndarray, size: FeatureMap) -> np.ndarray:
    """A number for each of C channels, or for all, padded with zeros to (blocks * lanes,)."""
    each = np.broadcast_to(values.astype("float32").reshape(-1), (size.channels,))
    return np.pad(each, (0, size.blocks * size.lanes - size.channels))


def pack_factors(rows: Sequence[np.ndarray], size: FeatureMap) -> np.ndarray:
    """Numbers for each of C channels, padded with zeros to (rows, blocks * lanes)."""
    return np.stack([pack_channels(row, size) for row in rows])
