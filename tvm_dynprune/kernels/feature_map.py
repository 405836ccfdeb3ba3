# SPDX-License-Identifier: Apache-2.0
"""FeatureMap: an activation tensor in blocked layout, NCHW[lanes]c with a halo of zeros.

Element (n, c, h, w) of the logical (N, C, H, W) tensor stands at
``[n, c // lanes, h + halo, w + halo, c % lanes]``. Lanes past C, and channels that a list of open
channels does not name, hold anything; the halo of a written block holds zeros, so that a
convolution needs no padding.
"""

from dataclasses import dataclass

import numpy as np
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer


@dataclass(frozen=True)
class FeatureMap:
    """Logical size and blocked layout of one activation tensor, or of some channels of one.

    An operand of a concatenation is computed where the concatenation will be: `blocks_before` and
    `blocks_behind` count that tensor's other blocks.
    """

    batch: int
    channels: int
    height: int
    width: int
    lanes: int
    halo: int = 0
    blocks_before: int = 0
    blocks_behind: int = 0

    @property
    def blocks(self) -> int:
        """Number of blocks of `lanes` channels; the last may be padded."""
        return -(-self.channels // self.lanes)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Shape of the whole tensor: (N, blocks, H + 2 halo, W + 2 halo, lanes)."""
        rows, columns = self.height + 2 * self.halo, self.width + 2 * self.halo
        blocks = self.blocks_before + self.blocks + self.blocks_behind
        return (self.batch, blocks, rows, columns, self.lanes)

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample, but for its halo."""
        return 4 * self.blocks * self.lanes * self.height * self.width

    def argument(self, name: str) -> Buffer:
        """Declare the whole tensor as the next parameter of the kernel being built."""
        return T.arg(name, T.buffer(self.shape, "float32"))

    def part_of(self, whole: Buffer) -> Buffer:
        """What `argument` declared, without the blocks before and behind."""
        if self.blocks_before == self.blocks_behind == 0:
            return whole
        _, blocks, *inner = self.shape
        strides = [int(np.prod(inner[i:])) for i in range(len(inner) + 1)]
        return T.decl_buffer(
            (self.batch, self.blocks, *inner),
            "float32",
            data=whole.data,
            strides=[blocks * strides[0], *strides],
            elem_offset=self.blocks_before * strides[0],
        )


def zero_block(y: Buffer, size: FeatureMap, n, block) -> None:
    """Write zeros into one block of `y`, its halo too."""
    rows, columns = size.height + 2 * size.halo, size.width + 2 * size.halo
    with T.grid(rows, columns) as (r, c), T.vectorized(0, size.lanes) as v:
        T.buffer_store(y, T.float32(0), [n, block, r, c, v])


def zero_halo(y: Buffer, size: FeatureMap, n, block) -> None:
    """Write zeros into the halo of one block of `y`."""
    halo, rows, columns = size.halo, size.height + 2 * size.halo, size.width + 2 * size.halo
    if halo == 0:
        return
    for top in (0, rows - halo):
        with T.grid(halo, columns) as (r, c), T.vectorized(0, size.lanes) as v:
            T.buffer_store(y, T.float32(0), [n, block, top + r, c, v])
    for left in (0, columns - halo):
        with T.grid(size.height, halo) as (r, c), T.vectorized(0, size.lanes) as v:
            T.buffer_store(y, T.float32(0), [n, block, halo + r, left + c, v])
