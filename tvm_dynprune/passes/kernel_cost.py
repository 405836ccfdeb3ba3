# SPDX-License-Identifier: Apache-2.0
"""What a convolution kernel is expected to cost, so that the compiler can choose between kernels.

The unit is one vector multiply-add whose operands are in the nearest cache. The other terms are
relative to it; they were fitted to timings of one core.
"""

from collections.abc import Sequence

from tvm_dynprune.soc import Cost


def direct_cost(
    channels_in: float, blocks_out: float, pixels: int, kernel: Sequence[int], cost: Cost
) -> float:
    """Cost of a direct convolution of `channels_in` open channels into `blocks_out` vectors."""
    weights = channels_in * blocks_out * kernel[0] * kernel[1]
    return weights * (pixels + cost.weight)


def winograd_cost(
    channels_in: float,
    blocks_out: float,
    size: tuple[int, int],
    lanes: int,
    tile: tuple[int, int],
    cost: Cost,
) -> float:
    """Cost of a Winograd convolution into planes of `size`, transforms included.

    `tile` is m and r of F(m x m, r x r).
    """
    m, r = tile
    tiles, points = -(-size[0] // m) * -(-size[1] // m), (m + r - 1) ** 2
    multiply = channels_in * blocks_out * points * (tiles + cost.weight)
    return multiply + (channels_in / lanes + blocks_out) * tiles * points * cost.transform
