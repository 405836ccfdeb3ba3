# SPDX-License-Identifier: Apache-2.0
"""Reduction: in which order a convolution walks its open input channels and its window.

=================  =================================================================================
``blocks``         block, kh, kw, channel in the block: where channels open by whole blocks. The
                   weights of one block are one run of memory, and the innermost bound is static.
``window_outer``   kh, kw, channel: the dynamic bound inside keeps LLVM from unrolling the window,
                   which would spill the accumulators
``channel_outer``  channel, kh, kw: for planes of a few pixels, which have few accumulators and are
                   bound by reading weights; those of one channel stay together, also where all
                   pixels take the products of some channels before those of the next
=================  =================================================================================

A long sum in one accumulator rounds each product to the size that the sum has come to; `chunked`
says where the loops stop to add what they have to a total, and start again from 0.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.feature_map import FeatureMap

_FEW_PIXELS = 8
_CHUNK = 128  # products, about; adding them to a total costs two more in a hundred
_LARGE_WINDOW = 144  # products of a block, above which its chunks are rows of the window
_ROWS_CHUNK = 48  # products of these, at most
_LARGE_CHUNK = 96  # products, at most, that all pixels take before the next ones


class Step(NamedTuple):
    """Position in the reduction, as TIR expressions: block and lane of the channel, kh, kw."""

    block: tirx.Var
    lane: tirx.Var | int
    kh: tirx.Var
    kw: tirx.Var
    index: tirx.Var  # of the channel among those that are walked, or those of a chunk
    weight: tuple  # index into the packed weights, but for the output channel

    def at_lane(self, lane: int) -> "Step":
        """Another channel of the block, from the first."""
        return self._replace(lane=lane, index=self.index + lane, weight=(*self.weight[:-1], lane))


@dataclass(frozen=True)
class Reduction:
    """The loops over input channels and window of one convolution.

    `unit` is how many neighbouring input channels open together where they are `listed`. With
    `few_registers` it unrolls the channels of a block: LLVM, left to do it, would unroll the window
    with them and keep what it loaded for other pixels, for which there are no registers. Of several
    `groups` of channels it walks one, in order "blocks"; of a `run` its channels one by one.
    """

    x: FeatureMap
    kernel: tuple[int, int]
    pixels: int
    listed: bool
    unit: int
    few_registers: bool = False
    groups: int = 1
    run: int = 0

    @property
    def order(self) -> str:
        """One of the orders above."""
        lanes = self.x.lanes
        if self.run:
            return "channel_outer" if self.few_registers else "window_outer"
        by_block = not self.listed or self.unit % lanes == 0
        if self.x.channels % lanes == 0 and by_block:
            return "blocks"
        if self.x.channels < lanes and not self.listed:  # an image's colours
            return "blocks"
        few = self.pixels <= _FEW_PIXELS or self.few_registers
        return "channel_outer" if few else "window_outer"

    @property
    def block_channels(self) -> int:
        """Channels of a block, in order "blocks"."""
        return min(self.x.lanes, self.x.channels)

    @property
    def list_length(self) -> int:
        """Length of the list of input channels, or of blocks of them."""
        return self.x.blocks // self.groups if self.order == "blocks" else self._channels

    @property
    def _channels(self) -> int:
        """Channels that are walked."""
        return self.run or self.x.channels

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the packed weights, but for the output channels."""
        (kh, kw), channels, block = self.kernel, self._channels, self.block_channels
        return {
            "blocks": (channels // block // self.groups, kh, kw, block),
            "window_outer": (kh, kw, channels),
            "channel_outer": (channels, kh, kw),
        }[self.order]

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Order the axes (..., C_in, KH, KW) of weights as `weight_shape` says."""
        if self.order == "channel_outer":
            return weight
        moved = np.moveaxis(weight, -3, -1)
        if self.order == "window_outer":
            return moved
        split = moved.reshape(*weight.shape[:-3], *self.kernel, -1, self.block_channels)
        return np.moveaxis(split, -2, -4)

    @property
    def chunked(self) -> bool:
        """Whether there is more than one chunk."""
        if self.order == "window_outer":
            return self._columns < self.kernel[0] * self.kernel[1]
        return self._rows > 0 or self._items < self.list_length

    @property
    def _rows(self) -> int:
        """Rows of the window that are one chunk of a block; 0 if whole blocks are."""
        (kh, kw), block = self.kernel, self.block_channels
        return max(1, _ROWS_CHUNK // (kw * block)) if kh * kw * block > _LARGE_WINDOW else 0

    @property
    def large_chunk(self) -> int:
        """Items of a chunk where all pixels' products are added before those of the next chunk.

        Their weights stay in the nearest cache meanwhile. 0 where one chunk is enough, or less than
        an item.
        """
        kh, kw = self.kernel
        items = _LARGE_CHUNK // (kh * kw * self.item_channels)
        return items if self.order != "window_outer" and items < self.list_length else 0

    @property
    def item_channels(self) -> int:
        """Channels of an item."""
        return self.block_channels if self.order == "blocks" else 1

    @property
    def _columns(self) -> int:
        """Positions of the window that are one chunk, where it is outermost."""
        return 1 if 2 * self._channels >= _CHUNK else self.kernel[1]

    @property
    def _items(self) -> int:
        """Items of the list that are one chunk."""
        kh, kw = self.kernel
        return max(1, _CHUNK // (kh * kw * (self.block_channels if self.order == "blocks" else 1)))

    @contextmanager
    def loops(
        self,
        n: tirx.Var,
        items: Buffer | None,
        count: Buffer | None,
        end_chunk: Callable[[], None] | None,
        prefetch: Callable[..., None] | None = None,
        *,
        by_vector: bool = False,
        within: tuple | None = None,
        before: Any = 0,
    ) -> Iterator[Step]:
        """Emit the loops for sample `n`, over the list `items` if there is one.

        `end_chunk` emits what follows a chunk, if it is `chunked`. ``prefetch(place, later)`` asks
        for weights, in order "blocks" once for all channels of a block: `place` is the index of
        those in use, `later` that of the next item's. `by_vector`, in order "blocks", stops at the
        first lane of each block only. `within` are the position and the number of the items of a
        chunk that all pixels take before the next one, if they are all; ``prefetch(i, j)`` then
        comes once for each place of the window. `before` counts the blocks of the groups before
        the one that is walked, or the channels before a run.
        """
        kh, kw = self.kernel
        lanes = T.unroll if self.few_registers else T.serial
        walk = self._open(n, items, count, within=within)
        if self.order == "blocks":
            with walk as (at, block, later):
                if not self._rows:
                    self._cut(at, self._items, end_chunk)
                with T.serial(0, kh) as i:
                    if self._rows:
                        self._cut(at * kh + i, self._rows, end_chunk)
                    with T.serial(0, kw) as j:
                        if prefetch is not None and within is None:
                            prefetch((block, i, j, 0), (later, i, j, 0))
                        elif prefetch is not None:
                            with T.If(at == 0), T.Then():
                                prefetch(i, j)
                        with lanes(0, 1 if by_vector else self.block_channels) as lane:
                            index = at * self.x.lanes + lane
                            yield Step(before + block, lane, i, j, index, (block, i, j, lane))
        elif self.order == "window_outer" or within is not None:
            with T.grid(kh, kw) as (i, j):
                self._cut(i * kw + j, self._columns, end_chunk)
                if within is not None and prefetch is not None:
                    prefetch(i, j)
                with walk as (at, c, later):
                    if within is None and prefetch is not None:
                        prefetch((i, j, c), (i, j, later))
                    outer = self.order == "window_outer"
                    place = (i, j, c) if outer else (c, i, j)
                    yield Step(*self._split(before + c), i, j, at, place)
        else:
            with walk as (at, c, later):
                self._cut(at, self._items, end_chunk)
                with T.grid(kh, kw) as (i, j):
                    if prefetch is not None:
                        prefetch((c, i, j), (later, i, j))
                    yield Step(*self._split(before + c), i, j, at, (c, i, j))

    def _cut(self, position, chunk: int, end_chunk: Callable[[], None] | None) -> None:
        """End a chunk before each position but the first where a new one begins."""
        if self.chunked and end_chunk is not None:
            begins = tirx.all(position > 0, tirx.floormod(position, chunk) == 0)
            with T.If(begins), T.Then():
                end_chunk()

    @contextmanager
    def channels(
        self, n: tirx.Var, items: Buffer | None, count: Buffer | None, within: tuple
    ) -> Iterator[tuple]:
        """Emit a loop over the channels of a chunk: index there, channel."""
        lanes = self.x.lanes
        with self._open(n, items, count, within=within) as (at, item, _):
            if self.order == "blocks":
                with T.serial(0, self.block_channels) as lane:
                    yield at * lanes + lane, item * lanes + lane
            else:
                yield at, item

    def _split(self, c: tirx.Var) -> tuple:
        lanes = self.x.lanes
        return tirx.floordiv(c, lanes), tirx.floormod(c, lanes)

    @contextmanager
    def _open(
        self,
        n: tirx.Var,
        items: Buffer | None,
        count: Buffer | None,
        within: tuple | None = None,
    ) -> Iterator[tuple]:
        """Walk the items: position, `within` the chunk if it is one, item, the next item."""
        end = self.list_length if count is None else count[n]
        first, length = within or (0, end)
        with T.serial(0, length) as i:
            position = first + i
            later = tirx.min(position + 1, end - 1)
            if items is None:
                yield i, wide(position), later
            else:
                yield i, wide(items[n, position]), items[n, later]


def wide(index):
    """Emit a copy of 64 bits, which TVM does not narrow again; returns it.

    An instruction adds a constant to an address of 64 bits for free. With 32, LLVM spends an
    instruction or two on each address, and loads so far ahead that sums do not fit the registers.
    """
    copy = T.alloc_buffer((1,), "int64")
    T.buffer_store(copy, T.cast(index, "int64"), [0])
    return copy[0]
