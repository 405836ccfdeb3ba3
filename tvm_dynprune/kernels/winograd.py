# SPDX-License-Identifier: Apache-2.0
"""Winograd convolution F(m x m, r x r): (m + r - 1)**2 products for m * m pixels.

Lavin, Gray: "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308::

    Y = A^T [ sum over c of (G g_c G^T) * (B^T d_c B) ] A

Two kernels, or one (`Winograd.fuses_input`). `winograd_input` transforms the open input channels,
once per layer; `winograd_conv2d` multiplies, transforms back and runs the epilogue, for one vector
of output channels after the other. The first costs open_in, the second open_in * open_out: what
gates save stays saved.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.direct_conv2d import pack_direct_weight
from tvm_dynprune.kernels.tiling import SPARE_REGISTERS, cut_evenly
from tvm_dynprune.kernels.winograd_transforms import transformed_weight

# By lanes, of what bytes cores multiply in a cycle: without gates, and with.
_FEW_TILES = {4: (4, 16), 8: (16, 16), 16: (16, 16)}
ENOUGH_AT_ONCE = 4  # tiles that share a row of weights
_ENOUGH_STRIPS = 4  # for threads to share


def packs_transformed(tiles: int, lanes: int, gated: bool, quick: bool) -> bool:
    """Whether weights are transformed at compile time.

    Not where they are needed for few tiles, and fetching them is not `quick`: it is what takes the
    time then, and it is 9 values before the transform and 16 or 36 after it. The parts that gates
    leave take longer.
    """
    return quick or tiles > _FEW_TILES[lanes][gated]


def tiles_at_once(side: int, registers: int) -> int:
    """How many tiles have a row of points in registers together."""
    return (registers - SPARE_REGISTERS) // side


def transforms_in_registers(
    tiles: int, side: int, lanes: int, gated: bool, quick: bool, registers: int
) -> bool:
    """Whether weights are transformed in registers as they are used, anew for a few tiles.

    It always beats a transform through memory. It beats fetching transformed weights, quickly or
    not, where one vector of them serves no more tiles than it has lanes.
    """
    fits = tiles_at_once(side, registers) >= ENOUGH_AT_ONCE
    return fits and (tiles <= lanes or not packs_transformed(tiles, lanes, gated, quick))


class Piece(NamedTuple):
    """`count` times `size` tiles from `start` on, at `at_once` points of each at a time."""

    start: int
    size: int
    count: int
    at_once: int


def pieces(tiles: int, points: int, most: int) -> list[Piece]:
    """How `points` products of each of `tiles` tiles are summed in at most `most` registers."""
    result = []
    for start, size, count in cut_evenly(tiles, most):
        fitting = [k for k in range(1, points + 1) if points % k == 0 and k * size <= most]
        result.append(Piece(start, size, count, max(fitting, default=1)))
    return result


@dataclass(frozen=True)
class Winograd:
    """An r x r convolution with steps of 1, by whole blocks; the side `m` of its tiles.

    `m` and r are 2 and 3, 4 and 3, or 4 and 4.
    """

    conv: Conv2d
    m: int

    @property
    def side(self) -> int:
        """Side of the square of inputs, and of products, that a tile takes."""
        return self.m + self.conv.kernel[0] - 1

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return -(-self.conv.y.height // self.m)

    @property
    def columns(self) -> int:
        """Tiles from left to right."""
        return -(-self.conv.y.width // self.m)

    @property
    def tiles(self) -> int:
        """Tiles of a plane."""
        return self.rows * self.columns

    @property
    def points(self) -> int:
        """Products per tile and pair of channels."""
        return self.side**2

    @property
    def strip_rows(self) -> int:
        """Rows of tiles whose products are held at a time, at most."""
        tiles = self.conv.schedule.strip_tiles
        # With the inputs of as many channels, half as many tiles take the same room.
        several = self.fuses_input and self.conv.x.blocks > 1
        return self._rows_of(tiles // 2 if several else tiles)

    def _rows_of(self, tiles: int) -> int:
        return min(self.rows, max(1, tiles // self.columns))

    @property
    def fuses_input(self) -> bool:
        """Whether one kernel does all, strip by strip.

        What it transforms, and multiplies for every output channel, then stays in a near cache: of
        few input channels, or of many where the whole plane would not.
        """
        conv = self.conv
        by_block = not self.by_channel and conv.visit in ("all", "blocks")
        if not (by_block and self.packs_transformed):
            return False
        strips = -(-self.rows // self._rows_of(conv.schedule.strip_tiles))
        return strips > 1 if conv.x.blocks == 1 else not conv.by_lane and strips >= _ENOUGH_STRIPS

    @property
    def sums(self) -> int:
        """Accumulators of one vector of output channels that stay in registers, at most."""
        return self.conv.schedule.sums or self.conv.sums

    @property
    def packs_transformed(self) -> bool:
        """Whether weights are transformed at compile time; see `packs_transformed`."""
        if self.conv.kernel != (3, 3):
            return True
        if self.conv.visit == "gather":
            return False
        if self.transforms_in_registers:
            return False
        quick = self.conv.schedule.quick_weights
        return packs_transformed(self.tiles, self.conv.y.lanes, self._gated, quick)

    @property
    def transforms_in_registers(self) -> bool:
        """Whether weights are transformed as they are used; see `transforms_in_registers`."""
        conv = self.conv
        if conv.by_lane or conv.kernel != (3, 3) or conv.visit == "gather":
            return False
        quick, registers = conv.schedule.quick_weights, conv.registers
        return transforms_in_registers(
            self.tiles, self.side, conv.y.lanes, self._gated, quick, registers
        )

    @property
    def _gated(self) -> bool:
        return self.conv.open_in or self.conv.visit != "all"

    @property
    def tiles_at_once(self) -> int:
        """Tiles whose weights are transformed in registers together."""
        return tiles_at_once(self.side, self.conv.registers)

    @property
    def block_channels(self) -> int:
        """Input channels of a block."""
        return min(self.conv.x.lanes, self.conv.x.channels)

    @property
    def by_channel(self) -> bool:
        """Whether input channels are listed one by one, not by whole blocks."""
        return self.conv.open_in and not self.conv.by_input_block

    @property
    def packs_by_channel(self) -> bool:
        """Whether weights that are not transformed are not put into blocks of input channels."""
        return self.by_channel or self.conv.visit == "gather"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the packed weights."""
        x, y = self.conv.x, self.conv.y
        if self.packs_transformed:
            return (y.blocks, self.points, x.blocks, self.block_channels, y.lanes)
        if self.packs_by_channel:
            return (y.blocks, x.channels, 3, 3, y.lanes)
        return (y.blocks, x.blocks, 3, 3, self.block_channels, y.lanes)

    @property
    def transformed_shape(self) -> tuple[int, int, int, int]:
        """Shape of the transformed input: N, points, blocks * tiles, lanes.

        One row more, so that the points of a tile, which are written together, do not all fall
        into the same set of the cache.
        """
        x = self.conv.x
        return (x.batch, self.points, x.blocks * self.tiles + 1, x.lanes)


def pack_winograd_weight(weight: np.ndarray, spec: Winograd) -> np.ndarray:
    """Weights (C_out, C_in, r, r) float32 as the kernel reads them, transformed or as they are."""
    c_out, c_in = weight.shape[:2]
    x, y = spec.conv.x, spec.conv.y
    if not spec.packs_transformed and not spec.packs_by_channel:
        return pack_direct_weight(weight, spec.conv)
    padded = np.zeros((y.blocks * y.lanes, *weight.shape[1:]), "float32")
    padded[:c_out] = weight
    if not spec.packs_transformed:
        blocked = padded.reshape(y.blocks, y.lanes, *weight.shape[1:])
        return np.ascontiguousarray(np.moveaxis(blocked, 1, -1))
    transformed = transformed_weight(padded, spec.m)
    blocked = transformed.reshape(spec.points, y.blocks, y.lanes, x.blocks, c_in // x.blocks)
    return np.ascontiguousarray(blocked.transpose(1, 0, 3, 4, 2), dtype="float32")
