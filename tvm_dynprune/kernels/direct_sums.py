# SPDX-License-Identifier: Apache-2.0
"""The sums of a direct convolution: a tile of accumulators at a time, in registers.

All input channels for one tile after the other, or, where tiles are small, some input channels for
all tiles.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.conv2d_builder import LINE, Conv2dBuilder
from tvm_dynprune.kernels.reduction import Step, wide
from tvm_dynprune.kernels.registers import add, registers, repeated_lanes, zero
from tvm_dynprune.kernels.tiling import Part, Tile, tile_size, tiles

_FEW_PIXELS, _MANY_PIXELS = 256, 1024
_HELD = 384 * 1024  # bytes of weights that a second level has room for, besides those in use
_IN_TURNS = 4  # pixels, as many as a multiply-add takes cycles


def prefetches(spec: Conv2d) -> bool:
    """Whether a kernel prefetches weights, unless they are quick.

    With very many pixels it has time to fetch. A core that multiplies by lane is slow enough to
    wait for those of a list only, whose gaps no hardware foresees.
    """
    pixels = spec.y.height * spec.y.width
    if spec.by_lane and (pixels > _FEW_PIXELS or not (spec.open_in and spec.by_input_block)):
        return False
    return pixels <= _MANY_PIXELS


@dataclass(frozen=True)
class Sums:
    """What accumulators (vectors, pixels) start with, are multiplied by, and become.

    ``start(acc)``, ``weight(step, vector, lane)``, ``finish(acc, tile, row, column)``, and, where
    weights are to be prefetched, ``ask(block, place, line)``: a cache line of those of one of the
    `blocks`, which are the vectors, or of the `following`, from a place on (`Step.weight`).
    ``ask_chunk(tile, at, i, j)`` does so for the next chunk at each place of the window.
    """

    blocks: list
    following: list
    weight: Callable[..., Any]
    start: Callable[..., None]
    finish: Callable[..., None]
    ask: Callable[..., None] | None = None
    ask_chunk: Callable[..., None] | None = None


@dataclass(frozen=True)
class Chunk:
    """Items of input channels, number `number` of `count`, that all pixels take before the next."""

    waiting: Buffer  # sums: vectors, pixels, lanes
    number: Any
    count: Any
    within: tuple  # position of the first item, and how many
    later: Any  # position of the next chunk


class DirectSums(Conv2dBuilder):
    """A builder with `sum_pixels`, of the input x; `first_row` is that of the convolution in y."""

    first_row: Any = 0

    @property
    def tiles(self) -> list[Tile]:
        """How the plane is cut."""
        y = self.spec.y
        rule = tile_size(y.height, y.width, self.spec.sums)
        return tiles(y.height, y.width, self.spec.schedule.tile or rule)

    @property
    def prefetches(self) -> bool:
        """Whether weights are prefetched."""
        return prefetches(self.spec) and not self.spec.schedule.quick_weights

    def sum_pixels(self, n, part: Part, sums: Sums) -> None:
        """Emit the sums of a part of the pixels."""
        spec = self.spec
        several = spec.y.height * spec.y.width > spec.sums
        # Small tiles go through the weights more often than any but the nearest cache can give.
        if spec.few_registers and several and spec.reduction.large_chunk > 0:
            with self.chunks(n, spec.reduction.large_chunk, len(sums.blocks)) as chunk:
                self.pixels(part, lambda tile, *at: self.chunk_tile(n, chunk, tile, at, sums))
        else:
            self.pixels(part, lambda tile, *at: self._tile(n, tile, at, sums))

    def pixels(self, part: Part, emit: Callable[..., None]) -> None:
        """A part of the pixels, a tile at a time: ``emit(tile, row, column)``."""
        for k, tile in enumerate(self.tiles):
            with part.share(tile.row_count, k) as i, T.serial(0, tile.column_count) as j:
                emit(tile, tile.row + i * tile.height, tile.column + j * tile.width)

    @contextmanager
    def chunks(self, n, at_once: int, vectors: int) -> Iterator[Chunk]:
        """Walk the items, `at_once` at a time; the sums of `vectors` wait in memory."""
        pixels = self.spec.y.height * self.spec.y.width
        waiting = T.alloc_buffer((vectors, pixels, self.lanes), "float32")
        items = self.items(n)
        count = tirx.max(tirx.floordiv(items + at_once - 1, at_once), 1)
        with T.serial(0, count) as number:
            first = number * at_once
            within = first, tirx.min(items - first, at_once)
            yield Chunk(waiting, number, count, within, first + at_once)

    def chunk_tile(self, n, chunk: Chunk, tile: Tile, at: tuple, sums: Sums, vector=0) -> None:
        """Add a chunk's products of a tile at (row, column), of vectors from number `vector` on."""
        y, waiting, number = self.spec.y, chunk.waiting, chunk.number
        acc = registers(len(sums.blocks), len(tile.pixels), lanes=self.lanes)
        pixels = [(at[0] + i) * y.width + at[1] + j for i, j in tile.pixels]
        if sums.ask is not None and tile == self.tiles[0]:
            self._ask_chunk(n, tile, at, chunk.later, sums)
        zero(acc)
        self._add_products(n, acc, tile, at, sums, within=chunk.within)
        with T.If(number > 0), T.Then():
            for (k, t), one in np.ndenumerate(acc):
                with T.vectorized(0, self.lanes) as v:
                    T.buffer_store(one, one[v] + waiting[vector + k, pixels[t], v], [v])
        with T.If(number < chunk.count - 1):
            with T.Then():
                for (k, t), one in np.ndenumerate(acc):
                    with T.vectorized(0, self.lanes) as v:
                        T.buffer_store(waiting, one[v], [vector + k, pixels[t], v])
            with T.Else():
                total = registers(*acc.shape, lanes=self.lanes)
                sums.start(total)
                add(acc, total)
                sums.finish(acc, tile, *at)

    def _ask_chunk(self, n, tile: Tile, at: tuple, later, sums: Sums) -> None:
        """Ask for a tile's share of the weights of the next chunk, items from `later` on."""
        assert sums.ask is not None
        reduction = self.spec.reduction
        _, *rest = reduction.weight_shape
        of_item = -(-int(np.prod(rest)) * self.lanes // LINE)
        needed = -(-of_item * reduction.large_chunk // (tile.row_count * tile.column_count))
        share = min((k for k in range(needed, of_item) if of_item % k == 0), default=of_item)
        items = -(-needed // of_item)
        number, _ = self.number(tile, at)
        end = self.items(n)
        for k in range(items):
            line = number * share * items + k * of_item
            item = later + line // of_item
            with T.If(tirx.all(item < end, line < of_item * reduction.large_chunk)), T.Then():
                for i in range(share):
                    listed = self.list_in[n, item] if self.spec.open_in else item
                    for block in sums.blocks:
                        sums.ask(block, (listed, *[0] * len(rest)), line % of_item + i)

    def number(self, tile: Tile, at: tuple) -> tuple:
        """Which tile of the plane it is, and of how many."""
        counts = [one.row_count * one.column_count for one in self.tiles]
        row, column = (at[0] - tile.row) // tile.height, (at[1] - tile.column) // tile.width
        before = sum(counts[: self.tiles.index(tile)])
        return before + row * tile.column_count + column, sum(counts)

    def _prefetch(self, tile: Tile, at: tuple, sums: Sums) -> Callable[..., None] | None:
        """What asks for weights that are needed later, at a place of the window.

        A tile's share of those of the vectors that come next, if a near cache holds them until
        then; else those of the next item. Of channels on their own, there is one line for each
        vector: tiles ask for a vector's in turns.
        """
        ask, spec, lines = sums.ask, self.spec, self._lines
        if ask is None:
            return None
        number, count = self.number(tile, at)
        share = -(-lines // count)
        size = 4 * len(sums.blocks) * self.lanes * int(np.prod(spec.reduction.weight_shape))

        def ask_share(place: tuple, _next: tuple) -> None:
            for block, k in product(sums.following, range(share)):
                ask(block, place, tirx.floormod(number * share + k, lines))

        def ask_in_turns(place: tuple, _next: tuple) -> None:
            for k, block in enumerate(sums.following):
                with T.If(number == k % count), T.Then():
                    ask(block, place, 0)

        def ask_next(_place: tuple, following: tuple) -> None:
            for block, line in product(sums.blocks, range(lines)):
                ask(block, following, line)

        if spec.visit == "group" or (spec.by_input_block and size > _HELD):
            return ask_next
        return ask_share if spec.by_input_block else ask_in_turns

    @property
    def _lines(self) -> int:
        """Cache lines of the weights of a block of input channels at one place of the window."""
        return max(1, self.spec.reduction.block_channels * self.lanes // LINE)

    def _tile(self, n, tile: Tile, at: tuple, sums: Sums) -> None:
        chunked = self.spec.reduction.chunked
        acc = registers(len(sums.blocks), len(tile.pixels), lanes=self.lanes)
        totals = acc
        if chunked:
            totals = registers(*acc.shape, lanes=self.lanes)
            zero(acc)
        sums.start(totals)

        def end_chunk() -> None:
            add(totals, acc)
            zero(acc)

        self._add_products(n, acc, tile, at, sums, end_chunk)
        if chunked:
            add(acc, totals)
        sums.finish(acc, tile, *at)

    def _add_products(
        self,
        n,
        acc: np.ndarray,
        tile: Tile,
        at: tuple,
        sums: Sums,
        end_chunk: Callable[[], None] | None = None,
        within: tuple | None = None,
    ) -> None:
        """Add all products of a tile, or those `within` a chunk."""
        lists = (self.list_in, self.count_in) if self.spec.open_in else (None, None)

        prefetch = self._prefetch(tile, at, sums) if within is None else None
        if sums.ask_chunk is not None:
            prefetch = partial(sums.ask_chunk, tile, at)
        with self.spec.reduction.loops(
            n,
            *lists,
            end_chunk,
            prefetch,
            by_vector=self._by_vector,
            within=within,
            before=self._before(sums.blocks[0]),
        ) as step:
            places = [(at[0] + i, at[1] + j) for i, j in tile.pixels]
            if self._by_vector:
                self._add_by_lane(n, acc, step, places, sums.weight)
                places = []
            for t, place in enumerate(places):
                x = self.x[self.place(n, step, *place)]
                for k, one in enumerate(acc[:, t]):
                    with T.vectorized(0, self.lanes) as v:
                        T.buffer_store(one, one[v] + x * sums.weight(step, k, v), [v])

    def _before(self, block):
        """Blocks of input channels, or channels, before those that a block of outputs reads."""
        if self.spec.run is not None:
            return wide(self.spec.run.start(block))
        groups, length = self.spec.groups, self.spec.reduction.list_length
        each = self.spec.y.blocks // groups
        return wide(tirx.floordiv(block, each) * length) if groups > 1 else 0

    @property
    def _by_vector(self) -> bool:
        """Whether a vector of input channels is read at a time, and multiplied lane by lane."""
        spec = self.spec
        # Kernels of one pixel are merged into others, by passes of TVM's that know no vectors.
        several = spec.y.height * spec.y.width > 1 and spec.x.lanes == self.lanes
        return spec.by_lane and spec.by_input_block and several

    def _add_by_lane(self, n, acc, step: Step, places: list[tuple], weight) -> None:
        """Multiply all channels of a block: pixels in turns, so that none waits for its own sum."""
        spec, lanes, v = self.spec, self.spec.x.lanes, T.Ramp(0, 1, self.lanes)
        for first in range(0, len(places), _IN_TURNS):
            some = places[first : first + _IN_TURNS]
            starts = [self.place(n, step, *place)[:-1] for place in some]
            inputs = [repeated_lanes(self.x, start, lanes, lanes) for start in starts]
            for lane, k in product(range(spec.reduction.block_channels), range(len(acc))):
                for one, x in zip(acc[k, first:], inputs, strict=False):
                    value = one[v] + x[lane] * weight(step.at_lane(lane), k, v)
                    T.buffer_store(one, value, [v])

    def place(self, n, step: Step, row, column) -> tuple:
        """Where in x the element is that a step multiplies for a pixel."""
        spec = self.spec
        row = row + self.first_row
        h = row * spec.stride[0] + step.kh * spec.dilation[0] + (spec.x.halo - spec.pad[0])
        w = column * spec.stride[1] + step.kw * spec.dilation[1] + (spec.x.halo - spec.pad[1])
        return n, step.block, h, w, step.lane
