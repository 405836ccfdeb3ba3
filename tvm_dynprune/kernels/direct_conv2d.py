# SPDX-License-Identifier: Apache-2.0
"""Direct convolution: accumulators stay in registers while the loop walks open input channels.

For one tile of pixels and one vector of output channels the loop runs over the *open* input
channels and the window, so the time is proportional to open_in * open_out. Any kernel size, stride,
dilation, padding and channel count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.conv2d_builder import LINE, Conv2dBuilder, ask_for, repeated_lanes
from tvm_dynprune.kernels.feature_map import zero_halo
from tvm_dynprune.kernels.gather import GatheredVector
from tvm_dynprune.kernels.reduction import Step
from tvm_dynprune.kernels.registers import registers
from tvm_dynprune.kernels.tiling import SPARE_REGISTERS, Part, Tile, tile_size, tiles

_FEW_PIXELS = 256
_MOST_VECTORS = 8  # computed together: as many streams of weights as hardware follows
_IN_TURNS = 4  # pixels, as many as a multiply-add takes cycles
_FEW_BLOCKS = 16  # whose open ones may not keep all threads busy
_MOST_PARTS = 2
_PARTS = 4  # of the open input channels, where all outputs are computed together
_AT_ONCE = 4  # input channels, likewise: the sums are loaded and stored once for them


def direct_weight_shape(spec: Conv2d) -> tuple[int, ...]:
    """Shape of the packed weights."""
    x, y = spec.x, spec.y
    if spec.input_outer:
        items = spec.reduction.list_length
        return (items, y.blocks, *spec.kernel, x.channels // items, y.lanes)
    if spec.visit == "gather":
        return (y.blocks, x.channels, *spec.kernel, y.lanes)
    return (y.blocks, *spec.reduction.weight_shape, y.lanes)


def pack_direct_weight(weight: np.ndarray, spec: Conv2d) -> np.ndarray:
    """Weights (C_out, C_in, KH, KW) float32 in the order in which the kernel reads them."""
    c_out, c_in, kh, kw = weight.shape
    lanes = spec.y.lanes
    padded = np.zeros((spec.y.blocks * lanes, c_in, kh, kw), "float32")
    padded[:c_out] = weight
    if spec.input_outer:
        items = spec.reduction.list_length
        blocked = padded.reshape(spec.y.blocks, lanes, items, c_in // items, kh, kw)
        return np.ascontiguousarray(blocked.transpose(2, 0, 4, 5, 3, 1))
    blocked = padded.reshape(spec.y.blocks, lanes, c_in, kh, kw)
    if spec.visit == "gather":
        return np.ascontiguousarray(np.moveaxis(blocked, 1, -1))
    return np.ascontiguousarray(np.moveaxis(spec.reduction.pack(blocked), 1, -1))


def prefetches(spec: Conv2d) -> bool:
    """Whether a kernel prefetches weights, unless they are quick.

    A list has gaps that no hardware foresees; with very many pixels it has time to fetch.
    """
    few = spec.y.height * spec.y.width <= _FEW_PIXELS
    return few and spec.open_in and spec.by_input_block and spec.visit != "gather"


def direct_conv2d(spec: Conv2d) -> tirx.PrimFunc:
    """Build the kernel; its parameters are those of `Conv2dBuilder`, the input is x."""
    return _Builder(spec).build()


@dataclass(frozen=True)
class _Sums:
    """What accumulators (vectors, pixels) start with, are multiplied by, and become.

    ``start(acc)``, ``weight(step, vector, lane)``, ``finish(acc, tile, row, column)``.
    """

    vectors: int
    weight: Callable[..., Any]
    start: Callable[..., None]
    finish: Callable[..., None]


class _Builder(Conv2dBuilder):
    _prefetch: Callable[[tuple], None] | None = None

    def declare_input(self) -> None:
        self.x = self.spec.x.argument("x")
        self.weight = T.arg("weight", T.buffer(direct_weight_shape(self.spec), "float32"))

    def sample(self, n) -> None:
        if self.spec.input_outer:
            self._sample_input_outer(n)
        else:
            super().sample(n)

    @property
    def vectors(self) -> int:
        """Output blocks that are computed together: few pixels alone leave registers idle."""
        spec = self.spec
        if spec.visit not in ("all", "blocks"):
            return 1
        pixels = spec.y.height * spec.y.width
        weights = spec.x.lanes if self._by_vector else 1
        most = (spec.registers - SPARE_REGISTERS) // (pixels + weights)
        return max(2 if spec.pairs else 1, min(most, _MOST_VECTORS, spec.y.blocks))

    @property
    def parts(self) -> int:
        rows = sum(tile.row_count for tile in self._tiles)
        usual = 2 if self.spec.pairs else 1
        few = self.spec.y.blocks <= _FEW_BLOCKS * usual and self.vectors == usual
        return min(_MOST_PARTS, rows) if few else 1

    @property
    def _tiles(self) -> list[Tile]:
        y = self.spec.y
        rule = tile_size(y.height, y.width, self.spec.sums)
        return tiles(y.height, y.width, self.spec.schedule.tile or rule)

    def some_blocks(self, n, blocks: list, following: list, part: Part) -> None:
        del following  # direct kernels prefetch within a block
        spec = self.spec

        def weight(step: Step, k: int, v):
            return self.weight[(blocks[k], *step.weight, v)]

        def start(acc) -> None:
            for (k, _), one in np.ndenumerate(acc):
                with T.vectorized(0, self.lanes) as v:
                    bias = self.bias[blocks[k] * self.lanes + v] if spec.bias else T.float32(0)
                    T.buffer_store(one, bias, [v])

        def finish(acc, tile: Tile, row, column) -> None:
            for (k, t), one in np.ndenumerate(acc):
                i, j = tile.pixels[t]
                with T.vectorized(0, self.lanes) as v:
                    self.store(one[v], n, blocks[k], row + i, column + j, v, k)

        def prefetch(following: tuple) -> None:
            lanes = range(0, spec.reduction.block_channels, max(1, LINE // self.lanes))
            for block, lane in product(blocks, lanes):
                ask_for(self.weight, (block, *following, lane, 0))

        slow = prefetches(spec) and not spec.schedule.quick_weights
        self._prefetch = prefetch if slow else None
        with self.summed(blocks, part):
            self._pixels(n, part, _Sums(len(blocks), weight, start, finish))
        with part.first():
            for block in blocks:
                zero_halo(self.y, spec.y, n, block)

    def _sample_input_outer(self, n) -> None:
        """Threads share the open input channels, each of which adds to every output."""
        spec, y, lanes = self.spec, self.spec.y, self.lanes
        pixels, count = y.height * y.width, self.count_in[n]
        sums = T.alloc_buffer((_PARTS, y.blocks, pixels, lanes), "float32")
        with T.parallel(0, _PARTS) as part:
            with T.grid(y.blocks, pixels) as (block, t), T.vectorized(0, lanes) as v:
                T.buffer_store(sums, T.float32(0), [part, block, t, v])
            first, end = (tirx.floordiv((part + k) * count, _PARTS) for k in (0, 1))
            at_once = 1 if spec.by_input_block else _AT_ONCE
            with T.serial(0, tirx.floordiv(end - first + at_once - 1, at_once)) as chunk:
                start = first + chunk * at_once
                with T.serial(0, y.blocks) as block:
                    self._add(n, sums, (part, block), start, tirx.min(end - start, at_once))
        with T.parallel(0, y.blocks) as block:
            for t in range(pixels):
                with T.vectorized(0, lanes) as v:
                    total = self.bias[block * lanes + v] if spec.bias else T.float32(0)
                    for part in range(_PARTS):
                        total = total + sums[part, block, t, v]
                    self.store(total, n, block, t // y.width, t % y.width, v)
            zero_halo(self.y, y, n, block)

    def _add(self, n, sums, at: tuple, start, count) -> None:
        """Add the products of `count` items of the input list to all pixels of one block."""
        spec, y, lanes = self.spec, self.spec.y, self.lanes
        pixels, channels = y.height * y.width, spec.x.channels // spec.reduction.list_length
        acc = registers(pixels, lanes=lanes)
        for t in range(pixels):
            with T.vectorized(0, lanes) as v:
                T.buffer_store(acc[t], T.float32(0), [v])
        with T.serial(0, count) as k, T.grid(*spec.kernel) as (i, j), T.serial(0, channels) as c:
            item = self.list_in[n, start + k]
            channel = item * channels + c
            place = tirx.floordiv(channel, spec.x.lanes), tirx.floormod(channel, spec.x.lanes)
            for t in range(pixels):
                step = Step(*place, i, j, channel, ())
                x = self.x[self._input(n, step, t // y.width, t % y.width)]
                with T.vectorized(0, lanes) as v:
                    product = x * self.weight[item, at[1], i, j, c, v]
                    T.buffer_store(acc[t], acc[t][v] + product, [v])
        for t in range(pixels):
            with T.vectorized(0, lanes) as v:
                T.buffer_store(sums, sums[(*at, t, v)] + acc[t][v], [*at, t, v])

    def _pixels(self, n, part: Part, sums: _Sums) -> None:
        """A part of the pixels, a tile of accumulators at a time."""
        for k, tile in enumerate(self._tiles):
            with part.share(tile.row_count, k) as i, T.serial(0, tile.column_count) as j:
                row = tile.row + i * tile.height
                column = tile.column + j * tile.width
                self._tile(n, tile, row, column, sums)

    @property
    def _by_vector(self) -> bool:
        """Whether a vector of input channels is read at a time, and multiplied lane by lane."""
        spec = self.spec
        # Kernels of one pixel are merged into others, by passes of TVM's that know no vectors.
        several = spec.y.height * spec.y.width > 1 and spec.x.lanes == self.lanes
        return spec.by_lane and spec.by_input_block and several

    def _tile(self, n, tile: Tile, row, column, sums: _Sums) -> None:
        spec, shape = self.spec, (sums.vectors, len(tile.pixels))
        acc = registers(*shape, lanes=self.lanes)
        totals = acc
        if spec.reduction.chunked:
            totals = registers(*shape, lanes=self.lanes)
            for one in acc.flat:
                with T.vectorized(0, self.lanes) as v:
                    T.buffer_store(one, T.float32(0), [v])
        sums.start(totals)

        def end_chunk() -> None:
            for one, total in zip(acc.flat, totals.flat, strict=True):
                with T.vectorized(0, self.lanes) as v:
                    T.buffer_store(total, total[v] + one[v], [v])
                    T.buffer_store(one, T.float32(0), [v])

        lists = (self.list_in, self.count_in) if spec.open_in else (None, None)
        by_vector = self._by_vector
        loops = spec.reduction.loops(n, *lists, end_chunk, self._prefetch, by_vector=by_vector)
        with loops as step:
            places = [(row + i, column + j) for i, j in tile.pixels]
            if by_vector:
                self._add_by_lane(n, acc, step, places, sums.weight)
                places = []
            for t, place in enumerate(places):
                x = self.x[self._input(n, step, *place)]
                for k, one in enumerate(acc[:, t]):
                    with T.vectorized(0, self.lanes) as v:
                        T.buffer_store(one, one[v] + x * sums.weight(step, k, v), [v])
        if spec.reduction.chunked:
            for one, total in zip(acc.flat, totals.flat, strict=True):
                with T.vectorized(0, self.lanes) as v:
                    T.buffer_store(one, one[v] + total[v], [v])
        sums.finish(acc, tile, row, column)

    def _add_by_lane(self, n, acc, step: Step, places: list[tuple], weight) -> None:
        """Multiply all channels of a block: pixels in turns, so that none waits for its own sum."""
        spec, lanes, v = self.spec, self.spec.x.lanes, T.Ramp(0, 1, self.lanes)
        for first in range(0, len(places), _IN_TURNS):
            some = places[first : first + _IN_TURNS]
            starts = [self._input(n, step, *place)[:-1] for place in some]
            inputs = [repeated_lanes(self.x, start, lanes) for start in starts]
            for lane, k in product(range(spec.reduction.block_channels), range(len(acc))):
                for one, x in zip(acc[k, first:], inputs, strict=False):
                    value = one[v] + x[lane] * weight(step.at_lane(lane), k, v)
                    T.buffer_store(one, value, [v])

    def _input(self, n, step: Step, row, column) -> tuple:
        """Where in x the element is."""
        spec = self.spec
        h = row * spec.stride[0] + step.kh * spec.dilation[0] + (spec.x.halo - spec.pad[0])
        w = column * spec.stride[1] + step.kw * spec.dilation[1] + (spec.x.halo - spec.pad[1])
        return n, step.block, h, w, step.lane

    def gathered(self, n, vector: GatheredVector) -> None:
        spec, lanes = self.spec, self.lanes
        rows = (spec.x.channels, *spec.kernel)
        packed = vector.row_buffer(int(np.prod(rows)))
        lists = (self.list_in, self.count_in) if spec.open_in else (None, None)
        with (
            vector.gather() as (block, copy),
            spec.reduction.channels(n, *lists) as (index, channel, later),
        ):
            with T.grid(*spec.kernel) as (i, j):
                ask_for(self.weight, (block, later, i, j, 0))
            with T.grid(*spec.kernel) as (i, j):
                row = _flat((index, i, j), rows)
                copy(packed, row, lambda every: self.weight[block, channel, i, j, every])
        bias = self.gathered_bias(vector) if spec.bias else None

        def weight(step: Step, _k: int, v):
            return packed[_flat((step.index, step.kh, step.kw), rows), v]

        def start(acc) -> None:
            for one in acc.flat:
                with T.vectorized(0, lanes) as v:
                    T.buffer_store(one, T.float32(0) if bias is None else bias[0, v], [v])

        def finish(acc, tile: Tile, row, column) -> None:
            places = [(row + i, column + j) for i, j in tile.pixels]
            values = T.alloc_buffer((len(places), lanes), "float32")
            for t, one in enumerate(acc.flat):
                with T.vectorized(0, lanes) as v:
                    T.buffer_store(values, one[v], [t, v])
            self.scatter(n, vector, values, places)

        self._pixels(n, Part(), _Sums(1, weight, start, finish))


def _flat(index: Sequence, shape: Sequence[int]):
    """Position in row-major order."""
    flat = index[0]
    for i, size in zip(index[1:], shape[1:], strict=True):
        flat = flat * size + i
    return flat
