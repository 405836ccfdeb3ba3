# SPDX-License-Identifier: Apache-2.0
"""The second kernel of a Winograd convolution: products, the transform back, and the epilogue."""

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.feature_map import zero_halo
from tvm_dynprune.kernels.gather import GatheredVectors
from tvm_dynprune.kernels.registers import registers
from tvm_dynprune.kernels.tiling import Part, by_run, cut, cut_evenly
from tvm_dynprune.kernels.winograd import Winograd
from tvm_dynprune.kernels.winograd_input import transform_strip, whole_rows
from tvm_dynprune.kernels.winograd_products import WinogradProducts
from tvm_dynprune.kernels.winograd_sums import Gathered, Products
from tvm_dynprune.kernels.winograd_transforms import output_transform

_FEW_BLOCKS = 16  # whose open ones may not keep all threads busy
_MOST_PARTS = 4


def winograd_conv2d(spec: Winograd) -> tirx.PrimFunc:
    """Build the kernel; its parameters are those of `Conv2dBuilder`, the input is u."""
    return _Builder(spec).build()


@dataclass(frozen=True)
class _Strip:
    """Rows of tiles whose products are held at a time; the last has a `height` of its own."""

    row: int  # of tiles
    rows: int
    height: int  # in pixels


def _strips(spec: Winograd) -> list[tuple[_Strip, int]]:
    """The strips of a plane and how many are alike; the last row of tiles may reach past y."""
    height, m = spec.conv.y.height, spec.m
    strips = []
    for row, rows, count in cut_evenly(spec.rows, spec.strip_rows):
        whole = max(0, min(count, (height // m - row) // rows))
        strips.append((_Strip(row, rows, rows * m), whole))
        last = row + whole * rows
        strips.append((_Strip(last, rows, min(rows * m, height - last * m)), count - whole))
    return [(strip, count) for strip, count in strips if count]


def _halves(spec: Winograd) -> tuple[int, list[tuple[_Strip, int]]]:
    """How often strips repeat down the plane, once or twice, and the strips.

    Twice where two threads would get unequal shares of them else.
    """
    strips = _strips(spec)
    rows = [strip.rows for strip, count in strips for _ in range(count)]
    equal = 2 * sum(rows[: -(-len(rows) // 2)]) == spec.rows
    if equal or spec.conv.y.height % (2 * spec.m) or whole_rows(spec) < spec.rows:
        return 1, strips
    pieces = cut(spec.rows // 2, spec.strip_rows)
    return 2, [(_Strip(row, rows, rows * spec.m), count) for row, rows, count in pieces]


class _Builder(WinogradProducts):
    @property
    def parts(self) -> int:
        if self.winograd.fuses_input:
            halves, strips = _halves(self.winograd)
            return halves * sum(count for _, count in strips)
        strips = sum(count for _, count in _strips(self.winograd))
        few = self.spec.y.blocks <= _FEW_BLOCKS and self.winograd.packs_transformed
        return min(_MOST_PARTS, strips) if few else 1

    @property
    def vectors(self) -> int:
        return 2 if self.spec.pairs and not self.winograd.transforms_in_registers else 1

    def blocks(self, n) -> None:
        if not self.winograd.fuses_input:
            super().blocks(n)
            return
        halves, strips = _halves(self.winograd)
        runs = [(strip.row, count, strip.rows) for strip, count in strips]
        each, rows = self.parts // halves, self.winograd.rows // halves
        with T.parallel(0, self.parts) as i:
            start = tirx.floordiv(i, each) * rows
            for k, row in by_run(tirx.floormod(i, each), runs):
                self._fused_strip(n, *strips[k], start + row, Part(i, self.parts))
        with T.parallel(0, self.block_count(n)) as position:
            zero_halo(self.y, self.spec.y, n, self.block_at(n, position))

    def _fused_strip(self, n, strip: _Strip, count: int, row, part: Part) -> None:
        """One of `count` strips, whose first row of tiles is given, from x to y: all blocks."""
        spec, x = self.winograd, self.spec.x
        whole = strip.rows if count > 1 else min(strip.rows, whole_rows(spec) - strip.row)
        tiles = strip.rows * spec.columns
        u = T.alloc_buffer((1, spec.points, x.blocks * tiles + 1, x.lanes), "float32")
        with self.input_blocks(n) as block:
            transform_strip(spec, self.x, u, (n, block, row), strip.rows, whole)
        for start, times, vectors in self.runs(n):
            with T.serial(0, times) as k:
                blocks, following = self.neighbours(n, start + k * vectors, vectors)
                with self.summed(blocks, part):
                    self._strip(n, blocks, following, strip, row, u)

    def some_blocks(self, n, blocks: list, following: list, part: Part) -> None:
        with self.summed(blocks, part):
            for k, (strip, count) in enumerate(_strips(self.winograd)):
                with part.share(count, k) as i:
                    self._strip(n, blocks, following, strip, strip.row + i * strip.rows)
        with part.first():
            for block in blocks:
                zero_halo(self.y, self.spec.y, n, block)

    def gathered(self, n) -> None:
        runs = self.vectors_at_once(self.count_out[n])
        with T.parallel(0, sum(times for _, times, _ in runs)) as i:
            for k, position in by_run(i, runs):
                self._gathered(n, self.gathered_vectors(n, position * self.lanes, runs[k][2]))

    def _gathered(self, n, vectors: GatheredVectors) -> None:
        bias = self.gathered_bias(vectors) if self.spec.bias else None
        blocks = [Gathered(vectors, number, bias) for number in range(vectors.vectors)]
        for strip, count in _strips(self.winograd):
            with T.serial(0, count) as i:
                self._strip(n, blocks, blocks, strip, strip.row + i * strip.rows)

    def _strip(
        self, n, blocks: list, following: list, strip: _Strip, row, u: Buffer | None = None
    ) -> None:
        """A strip, whose first row of tiles is given, of some blocks; and the blocks after them.

        `u` holds the strip's tiles only.
        """
        spec = self.winograd
        tiles = strip.rows * spec.columns
        shape = (spec.points, tiles, self.lanes)
        buffers = [T.alloc_buffer(shape, "float32") for _ in blocks]
        first = row * spec.columns if u is None else 0
        u = self.u if u is None else u
        products = Products(buffers, u, n, blocks, following, first, tiles)
        self.multiply(products)
        for number in range(len(blocks)):
            self._transform_back(products, number, strip, row)

    def _transform_back(self, products: Products, number: int, strip: _Strip, first) -> None:
        """A^T products A of every tile of a strip whose first row of tiles is given; epilogue.

        Of the vector of that number.
        """
        spec, m = self.winograd, self.winograd.m
        for row, height, row_count in cut(strip.height, m):
            for column, width, column_count in cut(self.spec.y.width, m):
                with T.grid(row_count, column_count) as (i, j):
                    tile = (row // m + i) * spec.columns + column // m + j
                    at = (first * m + row + i * m, column + j * m)
                    self._tile_back(products, number, tile, at, (height, width))

    def _tile_back(self, products: Products, number: int, tile, at: tuple, size: tuple) -> None:
        m, points = self.winograd.m, self.winograd.side
        block, buffer = products.blocks[number], products.buffers[number]
        e = registers(m, points, lanes=self.lanes)
        with T.vectorized(0, self.lanes) as v:
            for c in range(points):
                column = [buffer[r * points + c, tile, v] for r in range(points)]
                for r, value in enumerate(output_transform(column, m)):
                    T.buffer_store(e[r, c], value, [v])
        if isinstance(block, Gathered):
            self._scatter(products, block, e, at, size)
            return
        with T.vectorized(0, self.lanes) as v:
            for r in range(size[0]):
                values = output_transform([e[r, c][v] for c in range(points)], m)
                for c in range(size[1]):
                    value = values[c]
                    if self.spec.bias:
                        value = value + self.bias[block * self.lanes + v]
                    self.store(value, products.n, block, at[0] + r, at[1] + c, v, number)

    def _scatter(
        self, products: Products, gathered: Gathered, e: np.ndarray, at: tuple, size: tuple
    ) -> None:
        """The second half of the transform back, to the channels of a gathered vector."""
        m, points = self.winograd.m, self.winograd.side
        results = T.alloc_buffer((size[0] * size[1], self.lanes), "float32")
        first = gathered.number * self.lanes
        with T.vectorized(0, self.lanes) as v:
            for r in range(size[0]):
                values = output_transform([e[r, c][v] for c in range(points)], m)
                for c in range(size[1]):
                    bias = T.float32(0) if gathered.bias is None else gathered.bias[0, first + v]
                    T.buffer_store(results, values[c] + bias, [r * size[1] + c, v])
        places = [(at[0] + r, at[1] + c) for r in range(size[0]) for c in range(size[1])]
        self.scatter(products.n, gathered.vectors, gathered.number, results, places)
