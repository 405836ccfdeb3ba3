# SPDX-License-Identifier: Apache-2.0
"""Direct convolution: accumulators stay in registers while the loop walks open input channels.

For one tile of pixels and one vector of output channels the loop runs over the *open* input
channels and the window, so the time is proportional to open_in * open_out. Any kernel size, stride,
dilation, padding and channel count.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_dynprune.kernels.conv2d import Conv2d, Conv2dBuilder, ask_for
from tvm_dynprune.kernels.feature_map import zero_halo
from tvm_dynprune.kernels.reduction import Step
from tvm_dynprune.kernels.tiling import Part, Tile, tiles

_FEW_PIXELS = 64
_FEW_BLOCKS = 16  # whose open ones may not keep all threads busy
_MOST_PARTS = 2
_PARTS = 4  # of the open input channels, where all outputs are computed together
_AT_ONCE = 4  # input channels, likewise: the sums are loaded and stored once for them


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
    if spec.visit == "gather":
        return np.ascontiguousarray(np.moveaxis(spec.reduction.pack(padded), 0, -1))
    blocked = padded.reshape(spec.y.blocks, lanes, c_in, kh, kw)
    return np.ascontiguousarray(np.moveaxis(spec.reduction.pack(blocked), 1, -1))


def direct_conv2d(spec: Conv2d) -> tirx.PrimFunc:
    """Build the kernel; its parameters are those of `Conv2dBuilder`, the input is x."""
    return _Builder(spec).build()


class _Builder(Conv2dBuilder):
    _prefetch: Callable[[tuple], None] | None = None

    def declare_input(self) -> None:
        spec, y = self.spec, self.spec.y
        inner = spec.reduction.weight_shape
        self.x = spec.x.argument("x")
        if spec.input_outer:
            items = spec.reduction.list_length
            shape = (items, y.blocks, *spec.kernel, spec.x.channels // items, self.lanes)
        elif spec.visit == "gather":
            shape = (*inner, y.blocks * self.lanes)
        else:
            shape = (y.blocks, *inner, self.lanes)
        self.weight = T.arg("weight", T.buffer(shape, "float32"))

    def sample(self, n) -> None:
        if self.spec.visit == "gather":
            self._sample_gather(n)
        elif self.spec.input_outer:
            self._sample_input_outer(n)
        else:
            super().sample(n)

    @property
    def parts(self) -> int:
        y = self.spec.y
        rows = sum(tile.row_count for tile in tiles(y.height, y.width, self.spec.registers))
        return min(_MOST_PARTS, rows) if y.blocks <= _FEW_BLOCKS else 1

    def block(self, n, block, part: Part) -> None:
        spec = self.spec

        def weight(step: Step, v):
            return self.weight[(block, *step.weight, v)]

        def start(acc, t) -> None:
            with T.vectorized(0, self.lanes) as v:
                value = self.bias[block * self.lanes + v] if spec.bias else T.float32(0)
                T.buffer_store(acc, value, [t, v])

        def finish(acc, t, row, column) -> None:
            with T.vectorized(0, self.lanes) as v:
                self.store(acc[t, v], n, block, row, column, v)

        def prefetch(following: tuple) -> None:
            with T.unroll(0, spec.x.lanes) as lane:
                ask_for(self.weight, (block, *following, lane, 0))

        # A list has gaps that no hardware foresees; with many pixels it has time to fetch.
        pixels = spec.y.height * spec.y.width
        self._prefetch = prefetch if spec.open_in and pixels <= _FEW_PIXELS else None
        self._pixels(n, part, weight, start, finish)
        with part.first():
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
        acc = T.alloc_buffer((pixels, lanes), "float32", scope="local")
        with T.unroll(0, pixels) as t, T.vectorized(0, lanes) as v:
            T.buffer_store(acc, sums[(*at, t, v)], [t, v])
        with T.serial(0, count) as k, T.grid(*spec.kernel) as (i, j), T.serial(0, channels) as c:
            item = self.list_in[n, start + k]
            channel = item * channels + c
            place = tirx.floordiv(channel, spec.x.lanes), tirx.floormod(channel, spec.x.lanes)
            for t in range(pixels):
                x = self._input(n, Step(*place, i, j, ()), t // y.width, t % y.width)
                with T.vectorized(0, lanes) as v:
                    product = x * self.weight[item, at[1], i, j, c, v]
                    T.buffer_store(acc, acc[t, v] + product, [t, v])
        with T.unroll(0, pixels) as t, T.vectorized(0, lanes) as v:
            T.buffer_store(sums, acc[t, v], [*at, t, v])

    def _pixels(self, n, part: Part, weight, start, finish) -> None:
        """A part of one vector of output channels, a tile of accumulators at a time."""
        y = self.spec.y
        for k, tile in enumerate(tiles(y.height, y.width, self.spec.registers)):
            with part.share(tile.row_count, k) as i, T.serial(0, tile.column_count) as j:
                row = tile.row + i * tile.height
                column = tile.column + j * tile.width
                self._tile(n, tile, row, column, weight, start, finish)

    def _tile(self, n, tile: Tile, row, column, weight, start, finish) -> None:
        acc = T.alloc_buffer((tile.height * tile.width, self.lanes), "float32", scope="local")
        with T.unroll(0, tile.height * tile.width) as t:
            start(acc, t)
        with self._loops(n) as step:
            for t in range(tile.height * tile.width):
                x = self._input(n, step, row + t // tile.width, column + t % tile.width)
                with T.vectorized(0, self.lanes) as v:
                    T.buffer_store(acc, acc[t, v] + x * weight(step, v), [t, v])
        for t in range(tile.height * tile.width):
            finish(acc, t, row + t // tile.width, column + t % tile.width)

    def _loops(self, n) -> AbstractContextManager[Step]:
        if self.spec.open_in:
            return self.spec.reduction.loops(n, self.list_in, self.count_in, self._prefetch)
        return self.spec.reduction.loops(n, None, None)

    def _input(self, n, step: Step, row, column):
        spec = self.spec
        h = row * spec.stride[0] + step.kh * spec.dilation[0] + (spec.x.halo - spec.pad[0])
        w = column * spec.stride[1] + step.kw * spec.dilation[1] + (spec.x.halo - spec.pad[1])
        return self.x[n, step.block, h, w, step.lane]

    def _sample_gather(self, n) -> None:
        spec, y = self.spec, self.spec.y
        with T.parallel(0, y.blocks) as block:
            zero_halo(self.y, y, n, block)
        count = self.count_out[n]
        with T.parallel(0, tirx.floordiv(count + self.lanes - 1, self.lanes)) as vector:
            self._gathered_vector(n, vector, count)
        if spec.fill:
            with T.parallel(count, y.channels) as position:
                channel = self.list_out[n, position]
                block, lane = tirx.floordiv(channel, self.lanes), tirx.floormod(channel, self.lanes)
                with T.grid(y.height, y.width) as (row, column):
                    value = self.closed_value(n, block, row, column, lane)
                    T.buffer_store(self.y, value, [n, block, row + y.halo, column + y.halo, lane])

    def _gathered_vector(self, n, vector, count) -> None:
        """One vector put together from open channels; the last one repeats the last channels."""
        spec, unit = self.spec, self.spec.unit
        pieces = self.lanes // unit
        first = T.alloc_buffer((pieces,), "int32", scope="local")
        with T.unroll(0, pieces) as k:
            at = tirx.min(vector * self.lanes + k * unit, count - unit)
            T.buffer_store(first, self.list_out[n, at], [k])
        packed = self._gather_weight(n, first)
        bias = T.alloc_buffer((pieces, unit), "float32", scope="local")
        if spec.bias:
            with T.unroll(0, pieces) as k, T.vectorized(0, unit) as u:
                T.buffer_store(bias, self.bias[first[k] + u], [k, u])

        def weight(step: Step, v):
            return packed[(*step.weight, v)]

        def start(acc, t) -> None:
            with T.unroll(0, pieces) as k, T.vectorized(0, unit) as u:
                T.buffer_store(acc, bias[k, u] if spec.bias else T.float32(0), [t, k * unit + u])

        def finish(acc, t, row, column) -> None:
            with T.unroll(0, pieces) as k, T.vectorized(0, unit) as u:
                block = tirx.floordiv(first[k], self.lanes)
                lane = tirx.floormod(first[k], self.lanes) + u
                channel = first[k] + u
                value = self.epilogue(
                    acc[t, k * unit + u], n, block, lane, row, column,
                    lambda: self.scale[n, channel, 0, 0],
                )  # fmt: skip
                halo = spec.y.halo
                T.buffer_store(self.y, value, [n, block, row + halo, column + halo, lane])

        self._pixels(n, Part(), weight, start, finish)

    def _gather_weight(self, n, first):
        """Copy the weights of the open input and output channels together, once per vector."""
        unit = self.spec.unit
        packed = T.alloc_buffer((*self.spec.reduction.weight_shape, self.lanes), "float32")
        with self._loops(n) as step, T.unroll(0, self.lanes // unit) as k:
            with T.vectorized(0, unit) as u:
                value = self.weight[(*step.weight, first[k] + u)]
                T.buffer_store(packed, value, [*step.weight, k * unit + u])
        return packed
