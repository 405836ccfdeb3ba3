# SPDX-License-Identifier: Apache-2.0
"""What a convolution kernel is expected to cost, so that the compiler can choose between kernels.

The unit is one vector multiply-add whose operands are in the nearest cache. The other terms are
relative to it; they were fitted to timings of one core.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm_dynprune.kernels.winograd import (
    ENOUGH_AT_ONCE,
    packs_transformed,
    tiles_at_once,
    transforms_in_registers,
)
from tvm_dynprune.soc import Cost

_TRANSFORM_IN_REGISTERS = 0.6  # of a point's vector of weights
_GAPS = 0.6  # of putting a vector together: reading it where nobody reads its neighbours


def direct_cost(
    channels_in: float, blocks_out: float, pixels: int, kernel: Sequence[int], cost: Cost
) -> float:
    """Cost of a direct convolution of `channels_in` open channels into `blocks_out` vectors."""
    weights = channels_in * blocks_out * kernel[0] * kernel[1]
    return weights * (pixels + cost.weight)


def gather_cost(channels_in: float, blocks_out: float, kernel: Sequence[int], cost: Cost) -> float:
    """What a convolution costs more where its vectors of weights are put together."""
    return channels_in * blocks_out * kernel[0] * kernel[1] * cost.gather


def gaps_cost(channels_in: float, blocks_out: float, kernel: Sequence[int], cost: Cost) -> float:
    """What a convolution costs more where input channels are listed one by one, all outputs not."""
    return _GAPS * gather_cost(channels_in, blocks_out, kernel, cost)


@dataclass(frozen=True)
class WinogradPlane:
    """What the cost of a Winograd convolution F(m x m, r x r) depends on, but for the channels.

    Attributes
    ----------
    height, width
        Of the result.
    m, r
        Sides of a tile and of the kernel.
    gated
        Whether channels go by lists.
    quick
        Whether weights are fetched quickly; see `Schedule.quick_weights`.
    gathered
        Whether vectors of weights are put together from open output channels.
    registers
        Of the target, where weights may be transformed in them; 0 where they may not.
    """

    height: int
    width: int
    m: int
    r: int
    gated: bool
    quick: bool = False
    gathered: bool = False
    registers: int = 0

    def in_registers(self, lanes: int) -> bool:
        """Whether weights are transformed in registers; see `transforms_in_registers`."""
        return not self.gathered and transforms_in_registers(
            self.tiles, self.side, lanes, self.gated, self.quick, self.registers
        )

    @property
    def side(self) -> int:
        """Side of the square of products of a tile."""
        return self.m + self.r - 1

    @property
    def tiles(self) -> int:
        """Tiles of the plane."""
        return -(-self.height // self.m) * -(-self.width // self.m)

    @property
    def points(self) -> int:
        """Products per tile and pair of channels."""
        return self.side**2


def winograd_cost(
    channels_in: float, blocks_out: float, plane: WinogradPlane, lanes: int, cost: Cost
) -> float:
    """Cost of a Winograd convolution of `channels_in` open channels, transforms included."""
    tiles = multiplied = plane.tiles
    points = plane.points
    packs = packs_transformed(tiles, lanes, plane.gated, plane.quick)
    if plane.in_registers(lanes):
        times = -(-tiles // tiles_at_once(plane.side, plane.registers))
        weights = plane.r**2 * cost.weight + times * points * _TRANSFORM_IN_REGISTERS
        multiplied = max(tiles, ENOUGH_AT_ONCE)  # fewer do not hide the transform
    elif packs and not plane.gathered:
        weights = points * cost.weight
    else:
        weights = plane.r**2 * cost.weight + points * cost.weight_transform
    multiply = channels_in * blocks_out * (points * multiplied + weights)
    return multiply + (channels_in / lanes + blocks_out) * tiles * points * cost.transform
