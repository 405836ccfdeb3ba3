# SPDX-License-Identifier: Apache-2.0
"""Kernels that treat each channel alone: depthwise convolution, max and average pooling.

They visit all blocks of channels, or those that a list names. Vectorised over the channels of a
block, a row of accumulators at a time.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.activation import Activation, Formula, factor_rows
from tvm_dynprune.kernels.feature_map import FeatureMap, zero_block, zero_halo
from tvm_dynprune.kernels.open_list import list_arguments
from tvm_dynprune.kernels.pooling import Pooling
from tvm_dynprune.kernels.registers import registers
from tvm_dynprune.kernels.tiling import SPARE_REGISTERS, Part, Tile, tile_size, tiles

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
    y = spec.y

    def halo_row(row):
        return row + spec.x.halo

    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            x, rows = spec.x.argument("x"), WindowRows(spec)
            rows.declare_values()
            lists = list_arguments("out", y.batch, y.blocks) if spec.listed else None
            rows.declare_result(parts=1)
            with T.serial(0, y.batch) as n:
                with T.parallel(0, lists[1][n] if lists else y.blocks) as position:
                    block = lists[0][n, position] if lists else position
                    with rows.pooling.mean(n, block) if spec.pools else nullcontext():
                        rows.compute(n, block, Source(x, (n, block), halo_row), Strip(0, y.height))
                    zero_halo(rows.y, y, n, block)
                if lists:
                    rows.close(n, *lists)
    return builder.get()


class Source(NamedTuple):
    """Where a block of x is: in which buffer, at which first indices, and each row of it."""

    buffer: Buffer
    at: tuple
    row: Callable[[Any], Any]


class Strip(NamedTuple):
    """Rows of the result: all of them where they start at the number 0."""

    row: Any
    rows: int


class _Region(NamedTuple):
    """Rows or columns of the result, and whether their windows have to be clamped into x."""

    start: Any
    size: int
    clamps: bool


class WindowRows:
    """The parts of a kernel that computes `spec`, rows of a block at a time."""

    def __init__(self, spec: Window) -> None:
        self.spec = spec
        self.lanes = spec.y.lanes

    def declare_values(self, prefix: str = "") -> None:
        """Declare the parameters weight, bias, factors and scale, those that there are."""
        spec, y = self.spec, self.spec.y

        def declare(name: str, *shape: int) -> Buffer:
            return T.arg(prefix + name, T.buffer(shape, "float32"))

        if spec.kind == "depthwise":
            self.weight = declare("weight", y.blocks, *spec.kernel, self.lanes)
        if spec.bias:
            self.bias = declare("bias", y.blocks * self.lanes)
        if spec.factors:
            self.factors = declare("factors", spec.factors, y.blocks * self.lanes)
        if spec.scale:
            self.scale = declare("scale", y.batch, y.channels, 1, 1)

    def declare_result(self, parts: int) -> None:
        """Declare y and pool, the last parameters; threads compute `parts` of a plane apart."""
        y = self.spec.y
        whole = y.argument("y")
        if self.spec.pools:
            self.pooling = Pooling(y, parts)
        self.y = y.part_of(whole)
        if self.spec.pools:
            self.pooling.begin()

    def compute(self, n, block, source: Source, strip: Strip, number: int = 0) -> None:
        """Emit some rows of a block; `number` is its position in what is summed for `pool`."""
        for rows, columns in product(self._row_regions(strip), self._regions(1)):
            clamps = (rows.clamps, columns.clamps)
            size = tile_size(rows.size, columns.size, self.spec.registers - SPARE_REGISTERS)
            for tile in tiles(rows.size, columns.size, size):
                with T.grid(tile.row_count, tile.column_count) as (i, j):
                    row = rows.start + tile.row + i * tile.height
                    column = columns.start + tile.column + j * tile.width
                    at = (row, column)
                    acc = self._sums(block, source, tile, at, clamps)
                    self._store(acc, n, block, tile, at, number)

    def summed(self, blocks: list, part: Part) -> AbstractContextManager[None]:
        """What is computed of these blocks meanwhile is summed, where the spec `pools`."""
        return self.pooling.sums(blocks, part) if self.spec.pools else nullcontext()

    def close(self, n, list_out: Buffer, count_out: Buffer) -> None:
        """Emit what the blocks past the open ones of a list hold, and their means."""
        blocks = self.spec.y.blocks
        if self.spec.fill:
            with T.parallel(count_out[n], blocks) as position:
                zero_block(self.y, self.spec.y, n, list_out[n, position])
        if self.spec.pools:
            with T.serial(count_out[n], blocks) as position:
                self.pooling.write(n, list_out[n, position], lambda _v: T.float32(0))

    def _row_regions(self, strip: Strip) -> list[_Region]:
        if isinstance(strip.row, int) and strip.rows == self.spec.y.height:
            return self._regions(0)
        pads = self.spec.kind == "max" and any(region.clamps for region in self._regions(0))
        return [_Region(strip.row, strip.rows, pads)]

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

    def _sums(
        self, block, source: Source, tile: Tile, at: tuple, clamps: tuple[bool, bool]
    ) -> np.ndarray:
        """Accumulators of a tile's pixels, the first of which is `at` (row, column)."""
        spec = self.spec
        acc = registers(tile.height * tile.width, lanes=self.lanes)
        for one in acc:
            with T.vectorized(0, self.lanes) as v:
                start = T.float32(_LOWEST if spec.kind == "max" else 0)
                value = self.bias[block * self.lanes + v] if spec.bias else start
                T.buffer_store(one, value, [v])
        with T.serial(0, spec.kernel[0]) as i:
            for t, j in self._by_input(tile):
                pixel = (at[0] + t // tile.width, at[1] + t % tile.width)
                row, column = self._position(pixel, i, j, clamps)
                with T.vectorized(0, self.lanes) as v:
                    x = source.buffer[(*source.at, source.row(row), column + spec.x.halo, v)]
                    T.buffer_store(acc[t], self._step(acc[t][v], x, block, i, j, v), [v])
        return acc

    def _store(self, acc: np.ndarray, n, block, tile: Tile, at: tuple, number: int) -> None:
        halo = self.spec.y.halo
        for (i, j), one in zip(tile.pixels, acc, strict=True):
            r, c = at[0] + i, at[1] + j
            with T.vectorized(0, self.lanes) as v:
                value = self._finish(one[v], n, block * self.lanes + v, r, c)
                place = [n, block, r + halo, c + halo, v]
                T.buffer_store(self.y, value, place)
                if self.spec.pools:
                    self.pooling.add(self.y[tuple(place)], v, number)

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
            result.append(position)
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
