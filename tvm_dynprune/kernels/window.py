# SPDX-License-Identifier: Apache-2.0
"""Kernels that treat each channel alone: depthwise convolution, max and average pooling.

They visit all blocks of channels, or those that a list names. Vectorised over the channels of a
block, a row of accumulators at a time.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.activation import Activation, Formula, factor_rows
from tvm_dynprune.kernels.feature_map import FeatureMap, zero_block, zero_halo
from tvm_dynprune.kernels.open_list import list_arguments
from tvm_dynprune.kernels.pooling import Pooling
from tvm_dynprune.kernels.registers import registers
from tvm_dynprune.kernels.tiling import SPARE_REGISTERS, Tile, tile_size, tiles

_LOWEST = float(np.finfo("float32").min)


@dataclass(frozen=True)
class Window:
    """What one kernel computes: ``kind`` is "depthwise", "max" or "average".

    Depthwise: ``y = after(conv(x, weight) + bias) * scale``. Closed blocks become 0 if `fill`, and
    stay unwritten if not.
    """

    kind: str
    x: FeatureMap
    y: FeatureMap
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    bias: bool = False
    after: Activation | Formula | None = None
    scale: bool = False
    count_padding: bool = True  # average: divide by the whole window at the edges too
    listed: bool = False
    fill: bool = False
    pools: bool = False  # a second result, the mean of each channel of y; 0 for closed ones
    registers: int = 32

    @property
    def factors(self) -> int:
        """Rows of numbers for each channel that `after` reads."""
        return factor_rows(self.after)


def pack_depthwise_weight(weight: np.ndarray, spec: Window) -> np.ndarray:
    """Weights (C, 1, KH, KW) float32 as (blocks, KH, KW, lanes)."""
    channels, _, kh, kw = weight.shape
    padded = np.zeros((spec.y.blocks * spec.y.lanes, kh, kw), "float32")
    padded[:channels] = weight[:, 0]
    blocked = padded.reshape(spec.y.blocks, spec.y.lanes, kh, kw)
    return np.ascontiguousarray(blocked.transpose(0, 2, 3, 1))


def window(spec: Window) -> tirx.PrimFunc:
    """Build the kernel.

    Its parameters, those in brackets as `spec` says: x, [weight, for depthwise], [bias
    (blocks * lanes,)], [factors (factors, blocks * lanes)], [scale (N, C, 1, 1)], [list_out
    (N, blocks) int32, count_out (N,) int32], y, [pool (N, blocks, 1, 1, lanes)].
    """
    return _Builder(spec).build()


class _Region(NamedTuple):
    """Rows or columns of the result, and whether their windows have to be clamped into x."""

    start: int
    size: int
    clamps: bool


class _Builder:
    def __init__(self, spec: Window) -> None:
        self.spec = spec
        self.lanes = spec.y.lanes

    def build(self) -> tirx.PrimFunc:
        spec, y = self.spec, self.spec.y
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_attr({"tirx.noalias": True})
                self._declare()
                with T.serial(0, y.batch) as n:
                    if not spec.listed:
                        with T.parallel(0, y.blocks) as block:
                            self._block(n, block)
                    else:
                        with T.parallel(0, self.count_out[n]) as position:
                            self._block(n, self.list_out[n, position])
                    if spec.listed and spec.fill:
                        with T.parallel(self.count_out[n], y.blocks) as position:
                            zero_block(self.y, y, n, self.list_out[n, position])
                    if spec.listed and spec.pools:
                        with T.serial(self.count_out[n], y.blocks) as position:
                            block = self.list_out[n, position]
                            self.pooling.write(n, block, lambda _v: T.float32(0))
        return builder.get()

    def _declare(self) -> None:
        spec, y = self.spec, self.spec.y
        self.x = spec.x.argument("x")
        if spec.kind == "depthwise":
            shape = (y.blocks, *spec.kernel, self.lanes)
            self.weight = T.arg("weight", T.buffer(shape, "float32"))
        if spec.bias:
            self.bias = T.arg("bias", T.buffer((y.blocks * self.lanes,), "float32"))
        if spec.factors:
            shape = spec.factors, y.blocks * self.lanes
            self.factors = T.arg("factors", T.buffer(shape, "float32"))
        if spec.scale:
            self.scale = T.arg("scale", T.buffer((y.batch, y.channels, 1, 1), "float32"))
        if spec.listed:
            self.list_out, self.count_out = list_arguments("out", y.batch, y.blocks)
        whole = y.argument("y")
        if spec.pools:
            self.pooling = Pooling(y, 1)
        self.y = y.part_of(whole)
        if spec.pools:
            self.pooling.begin()

    def _block(self, n, block) -> None:
        with self.pooling.mean(n, block) if self.spec.pools else nullcontext():
            self._plane(n, block)
        zero_halo(self.y, self.spec.y, n, block)

    def _plane(self, n, block) -> None:
        for rows, columns in product(self._regions(0), self._regions(1)):
            clamps = (rows.clamps, columns.clamps)
            size = tile_size(rows.size, columns.size, self.spec.registers - SPARE_REGISTERS)
            for tile in tiles(rows.size, columns.size, size):
                with T.grid(tile.row_count, tile.column_count) as (i, j):
                    row = rows.start + tile.row + i * tile.height
                    column = columns.start + tile.column + j * tile.width
                    self._tile(n, block, tile, row, column, clamps)

    def _regions(self, axis: int) -> list[_Region]:
        """Rows or columns of the result, those apart whose windows reach out of x."""
        spec = self.spec
        size, outputs = ((m.height, m.width)[axis] for m in (spec.x, spec.y))
        if spec.kind != "max":  # the halo's zeros do
            return [_Region(0, outputs, False)]
        stride, pad = spec.stride[axis], spec.pad[axis]
        reach = (spec.kernel[axis] - 1) * spec.dilation[axis]
        first = min(outputs, -(-pad // stride))
        last = max(first, min(outputs, (size - 1 + pad - reach) // stride + 1))
        regions = [
            _Region(0, first, True),
            _Region(first, last - first, False),
            _Region(last, outputs - last, True),
        ]
        return [region for region in regions if region.size]

    def _tile(self, n, block, tile: Tile, row, column, clamps: tuple[bool, bool]) -> None:
        spec, pixels = self.spec, tile.height * tile.width
        acc = registers(pixels, lanes=self.lanes)
        for one in acc:
            with T.vectorized(0, self.lanes) as v:
                start = T.float32(_LOWEST if spec.kind == "max" else 0)
                value = self.bias[block * self.lanes + v] if spec.bias else start
                T.buffer_store(one, value, [v])
        with T.serial(0, spec.kernel[0]) as i:
            for t, j in self._by_input(tile):
                at = (row + t // tile.width, column + t % tile.width)
                with T.vectorized(0, self.lanes) as v:
                    x = self.x[(n, block, *self._position(at, i, j, clamps), v)]
                    T.buffer_store(acc[t], self._step(acc[t][v], x, block, i, j, v), [v])
        for t in range(pixels):
            r, c = row + t // tile.width, column + t % tile.width
            with T.vectorized(0, self.lanes) as v:
                value = self._finish(acc[t][v], n, block * self.lanes + v, r, c)
                place = [n, block, r + spec.y.halo, c + spec.y.halo, v]
                T.buffer_store(self.y, value, place)
                if spec.pools:
                    self.pooling.add(self.y[tuple(place)], v)

    def _by_input(self, tile: Tile) -> list[tuple[int, int]]:
        """(pixel, column of the window), such that all that read an input follow each other."""
        stride, step = self.spec.stride[1], self.spec.dilation[1]
        pairs = product(range(tile.height * tile.width), range(self.spec.kernel[1]))
        return sorted(
            pairs,
            key=lambda pair: (
                pair[0] // tile.width,
                pair[0] % tile.width * stride + pair[1] * step,
            ),
        )

    def _position(self, at: tuple, i, j, clamps: tuple[bool, bool]) -> list:
        spec, result = self.spec, []
        for axis, size in enumerate((spec.x.height, spec.x.width)):
            position = at[axis] * spec.stride[axis] + (i, j)[axis] * spec.dilation[axis]
            position = position - spec.pad[axis]
            if clamps[axis]:
                # Padding never wins a maximum: repeat the window's nearest pixel that is inside.
                step = spec.dilation[axis]
                first = tirx.min(tirx.floormod(position, step), size - 1)
                last = size - 1 - tirx.floormod(size - 1 - position, step)
                position = tirx.max(first, tirx.min(position, last))
            result.append(position + spec.x.halo)
        return result

    def _step(self, acc, x, block, i, j, v):
        if self.spec.kind == "depthwise":
            return acc + x * self.weight[block, i, j, v]
        return tirx.max(acc, x) if self.spec.kind == "max" else acc + x

    def _finish(self, value, n, channel, row, column):
        spec = self.spec
        if spec.kind == "average":
            value = value * self._reciprocal_count(row, column)
        if spec.after:
            value = spec.after(value, lambda row: self.factors[row, channel])
        if spec.scale:
            if spec.y.channels % self.lanes:
                channel = tirx.min(channel, spec.y.channels - 1)
            value = value * self.scale[n, channel, 0, 0]
        return value

    def _reciprocal_count(self, row, column):
        spec = self.spec
        if spec.count_padding:
            return T.float32(1.0 / (spec.kernel[0] * spec.kernel[1]))
        count = 1
        for axis, (at, size) in enumerate(((row, spec.x.height), (column, spec.x.width))):
            first = at * spec.stride[axis] - spec.pad[axis]
            count = count * (tirx.min(first + spec.kernel[axis], size) - tirx.max(first, 0))
        return T.float32(1) / T.cast(count, "float32")
