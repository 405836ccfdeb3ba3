# SPDX-License-Identifier: Apache-2.0
"""Winograd convolution F(m x m, r x r): (m + r - 1)**2 products for m * m pixels.

Lavin, Gray: "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308::

    Y = A^T [ sum over c of (G g_c G^T) * (B^T d_c B) ] A

Two kernels. `winograd_input` transforms the open input channels, once per layer; `winograd_conv2d`
multiplies, transforms back and runs the epilogue, for one vector of output channels after the
other. The first costs open_in, the second open_in * open_out: what gates save stays saved.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.conv2d import Conv2d, Conv2dBuilder, ask_for
from tvm_dynprune.kernels.direct_conv2d import pack_direct_weight
from tvm_dynprune.kernels.feature_map import zero_halo
from tvm_dynprune.kernels.tiling import SPARE_REGISTERS, Part, cut, cut_evenly, parallel
from tvm_dynprune.kernels.winograd_transforms import (
    input_transform,
    output_transform,
    transformed_weight,
    weight_transform,
)

_AT_ONCE = 2  # vectors of input channels whose weights are transformed together
_FEW_BLOCKS = 16  # whose open ones may not keep all threads busy
_MOST_PARTS = 4
_WORTH_THREADS = 512  # tiles of input, a few of which take a microsecond
_MOST_TILES = 64  # whose products stay in the nearest caches


def packs_transformed(tiles: int, gated: bool, cached: bool) -> bool:
    """Whether weights are transformed at compile time.

    Not where an image needs a part of them for few tiles, and they are not `cached`: fetching that
    part from memory is what takes the time, and it is 9 values before the transform and 16 or 36
    after it.
    """
    return not gated or cached or tiles > _MOST_TILES


@dataclass(frozen=True)
class Winograd:
    """An r x r convolution with steps of 1, by whole blocks; the side `m` of its tiles.

    `m` and r are 2 and 3, 4 and 3, or 3 and 4. `cached` says that the network's weights stay in
    the caches from one input to the next.
    """

    conv: Conv2d
    m: int
    cached: bool = False

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
    def packs_transformed(self) -> bool:
        """Whether weights are transformed at compile time; see `packs_transformed`."""
        gated = self.conv.open_in or self.conv.visit != "all"
        return packs_transformed(self.tiles, gated, self.cached)

    @property
    def by_channel(self) -> bool:
        """Whether input channels are listed one by one, not by whole blocks."""
        return self.conv.open_in and not self.conv.by_input_block

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the packed weights."""
        x, y = self.conv.x, self.conv.y
        if self.packs_transformed:
            return (y.blocks, self.points, x.blocks, x.lanes, y.lanes)
        inner = (x.channels, 3, 3) if self.by_channel else (x.blocks, 3, 3, x.lanes)
        return (y.blocks, *inner, y.lanes)

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
    if not spec.packs_transformed and not spec.by_channel:
        return pack_direct_weight(weight, spec.conv)
    padded = np.zeros((y.blocks * y.lanes, *weight.shape[1:]), "float32")
    padded[:c_out] = weight
    if not spec.packs_transformed:
        blocked = padded.reshape(y.blocks, y.lanes, *weight.shape[1:])
        return np.ascontiguousarray(np.moveaxis(blocked, 1, -1))
    transformed = transformed_weight(padded, spec.m)
    blocked = transformed.reshape(spec.points, y.blocks, y.lanes, x.blocks, c_in // x.blocks)
    return np.ascontiguousarray(blocked.transpose(1, 0, 3, 4, 2), dtype="float32")


def winograd_input(spec: Winograd) -> tirx.PrimFunc:
    """Build the kernel x, [list of open blocks, count] → u, of `Winograd.transformed_shape`."""
    conv, x_map = spec.conv, spec.conv.x
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            x = x_map.argument("x")
            list_in = count_in = None
            if conv.open_in:
                list_in = T.arg("list_in", T.buffer((x_map.batch, x_map.blocks), "int32"))
                count_in = T.arg("count_in", T.buffer((x_map.batch,), "int32"))
            u = T.arg("u", T.buffer(spec.transformed_shape, "float32"))
            with T.serial(0, x_map.batch) as n:
                if list_in is None or count_in is None:
                    with _input_loop(spec, x_map.blocks) as (block, part):
                        _transform_block(spec, x, u, n, block, part)
                else:
                    with _input_loop(spec, count_in[n]) as (position, part):
                        _transform_block(spec, x, u, n, list_in[n, position], part)
    return builder.get()


@contextmanager
def _input_loop(spec: Winograd, blocks) -> Iterator[tuple[tirx.Var, Part]]:
    """Walk `blocks` blocks of input channels, in parallel where it takes long enough."""
    if spec.conv.x.blocks * spec.tiles < _WORTH_THREADS:
        with T.serial(0, blocks) as i:
            yield i, Part()
    else:
        with parallel(blocks, min(_MOST_PARTS, spec.rows)) as at:
            yield at


def _transform_block(spec: Winograd, x, u, n, block, part: Part) -> None:
    """B^T d B of a part of the tiles of one block of channels."""
    size, points = spec.conv.x, spec.side
    top, left = (size.halo - pad for pad in spec.conv.pad)
    rows, columns = size.height + 2 * size.halo - top, size.width + 2 * size.halo - left
    for k, (row, row_count) in enumerate(_whole_and_last(spec, spec.rows, rows)):
        for column, column_count in _whole_and_last(spec, spec.columns, columns):
            # What the last tile of a row or column has past the buffer only pixels past y read.
            inside = (rows - row * spec.m, columns - column * spec.m)
            with part.share(row_count, k) as i, T.serial(0, column_count) as j:
                tile = (row + i) * spec.columns + column + j
                at_row, at_column = top + (row + i) * spec.m, left + (column + j) * spec.m
                d = T.alloc_buffer((points, points, size.lanes), "float32", scope="local")
                with T.vectorized(0, size.lanes) as v:
                    for c in range(points):
                        values = [
                            x[n, block, at_row + r, at_column + c, v]
                            if r < inside[0] and c < inside[1]
                            else T.float32(0)
                            for r in range(points)
                        ]
                        for r, value in enumerate(input_transform(values)):
                            T.buffer_store(d, value, [r, c, v])
                with T.vectorized(0, size.lanes) as v:
                    for r in range(points):
                        values = input_transform([d[r, c, v] for c in range(points)])
                        for c, value in enumerate(values):
                            at = [n, r * points + c, block * spec.tiles + tile, v]
                            T.buffer_store(u, value, at)


def _whole_and_last(spec: Winograd, tiles: int, pixels: int) -> list[tuple[int, int]]:
    """(first, count) of the tiles whose input ends within `pixels`, and of the last one if not."""
    whole = min(tiles, (pixels - spec.side + spec.m) // spec.m)
    return [part for part in ((0, whole), (whole, tiles - whole)) if part[1]]


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
    for row, rows, count in cut_evenly(spec.rows, max(1, _MOST_TILES // spec.columns)):
        whole = max(0, min(count, (height // m - row) // rows))
        strips.append((_Strip(row, rows, rows * m), whole))
        last = row + whole * rows
        strips.append((_Strip(last, rows, min(rows * m, height - last * m)), count - whole))
    return [(strip, count) for strip, count in strips if count]


@dataclass(frozen=True)
class _Part:
    """The products of one vector of output channels for some of the tiles."""

    products: Buffer  # points, tiles + 1, lanes
    n: tirx.Var
    block: Any
    tile: Any  # the first one
    tiles: int


class _Channel(NamedTuple):
    """One open input channel: its position in a sum, its block, and its lane there."""

    index: Any
    block: Any
    lane: Any


@dataclass(frozen=True)
class _Sum:
    """products[p, t, :] = sum over open input channels c of u[p, t, c] * weight(p, c, :).

    Over `count` items of the list from position `first` on; `adds` to what is in `products`.
    """

    part: _Part
    first: Any
    count: Any
    weight: Callable[..., Any]
    adds: bool = False


class _Builder(Conv2dBuilder):
    def __init__(self, spec: Winograd) -> None:
        super().__init__(spec.conv)
        self.winograd = spec

    def declare_input(self) -> None:
        self.u = T.arg("u", T.buffer(self.winograd.transformed_shape, "float32"))
        self.weight = T.arg("weight", T.buffer(self.winograd.weight_shape, "float32"))

    @property
    def parts(self) -> int:
        strips = sum(count for _, count in _strips(self.winograd))
        few = self.spec.y.blocks <= _FEW_BLOCKS and self.winograd.packs_transformed
        return min(_MOST_PARTS, strips) if few else 1

    def block(self, n, block, part: Part) -> None:
        for k, (strip, count) in enumerate(_strips(self.winograd)):
            with part.share(count, k) as i:
                self._strip(n, block, strip, strip.row + i * strip.rows)
        with part.first():
            zero_halo(self.y, self.spec.y, n, block)

    def _strip(self, n, block, strip: _Strip, row) -> None:
        spec = self.winograd
        tiles = strip.rows * spec.columns
        products = T.alloc_buffer((spec.points, tiles + 1, self.lanes), "float32")
        part = _Part(products, n, block, row * spec.columns, tiles)
        if spec.packs_transformed:

            def weight(point, channel: _Channel, v):
                return self.weight[block, point, channel.block, channel.lane, v]

            self._multiply(_Sum(part, 0, self._items(n), weight))
        else:
            self._transform_and_multiply(part)
        self._transform_back(part, strip, row)

    def _items(self, n):
        """How many blocks of input channels, or channels, there are to walk."""
        return self.count_in[n] if self.spec.open_in else self.spec.x.blocks

    @property
    def _item_channels(self) -> int:
        """Input channels of an item."""
        return 1 if self.winograd.by_channel else self.spec.x.lanes

    @contextmanager
    def _channels(self, n, first, count) -> Iterator[_Channel]:
        """Walk the channels of `count` items."""
        lanes = self.spec.x.lanes
        with T.serial(0, count) as i:
            item = self._item(n, first + i)
            if self.winograd.by_channel:
                yield _Channel(i, tirx.floordiv(item, lanes), tirx.floormod(item, lanes))
            else:
                with T.serial(0, lanes) as c:
                    yield _Channel(i * lanes + c, item, c)

    def _item(self, n, position):
        return self.list_in[n, position] if self.spec.open_in else position

    def _transform_and_multiply(self, part: _Part) -> None:
        """Transform the weights of a few open input channels at a time, and add their products."""
        spec, lanes, n = self.winograd, self.lanes, part.n
        items, at_once = self._items(n), _AT_ONCE * lanes // self._item_channels
        # One row more: see `Winograd.transformed_shape`.
        transformed = T.alloc_buffer((spec.points, _AT_ONCE * lanes + 1, lanes), "float32")
        with T.grid(spec.points, part.tiles) as (p, t), T.vectorized(0, lanes) as v:
            T.buffer_store(part.products, T.float32(0), [p, t, v])
        with T.serial(0, tirx.floordiv(items + at_once - 1, at_once)) as chunk:
            first = chunk * at_once
            count = tirx.min(items - first, at_once)
            with self._channels(n, first, count) as channel:
                self._transform_weight(transformed, part.block, channel)

            def weight(point, channel: _Channel, v):
                return transformed[point, channel.index, v]

            def prefetch(step, steps: int) -> None:
                self._prefetch(part, first + at_once, step, steps)

            self._multiply(_Sum(part, first, count, weight, adds=True), prefetch)

    def _transform_weight(self, transformed, block, channel: _Channel) -> None:
        """G g G^T of the weights of one input channel."""
        points, m, lanes = self.winograd.side, self.winograd.m, self.spec.x.lanes
        e = T.alloc_buffer((points, 3, self.lanes), "float32", scope="local")

        def given(i: int, j: int, v):
            if self.winograd.by_channel:
                return self.weight[block, channel.block * lanes + channel.lane, i, j, v]
            return self.weight[block, channel.block, i, j, channel.lane, v]

        with T.vectorized(0, self.lanes) as v:
            for j in range(3):
                column = [given(i, j, v) for i in range(3)]
                for i, value in enumerate(weight_transform(column, m)):
                    T.buffer_store(e, value, [i, j, v])
        with T.vectorized(0, self.lanes) as v:
            for i in range(points):
                row = weight_transform([e[i, j, v] for j in range(3)], m)
                for j, value in enumerate(row):
                    T.buffer_store(transformed, value, [i * points + j, channel.index, v])

    def _prefetch(self, part: _Part, first, step, steps: int) -> None:
        """Ask for a share of the next weights: a list has gaps that no hardware foresees."""
        lines = 9 * self._item_channels  # of an item's weights
        share = -(-_AT_ONCE * 9 * self.lanes // steps)
        for k in range(max(1, share // lines)):
            start = step * share + k * lines
            position = tirx.min(first + tirx.floordiv(start, lines), self._items(part.n) - 1)
            inner = [0] * (len(self.winograd.weight_shape) - 3)
            with T.unroll(0, min(share, lines)) as line:
                at = (tirx.floormod(start, lines) + line) * self.lanes
                ask_for(self.weight, (part.block, self._item(part.n, position), *inner, at))

    def _multiply(self, total: _Sum, prefetch: Callable[..., None] | None = None) -> None:
        """Every tile and point of a sum, in pieces that fit the registers."""
        points = self.winograd.points
        most = max(1, self.spec.registers - SPARE_REGISTERS)
        for start, size, count in cut_evenly(total.part.tiles, most):
            at_once = max(k for k in range(1, points + 1) if points % k == 0
                          and k * size <= max(most, size))  # fmt: skip
            steps = points // at_once
            with T.grid(steps, count) as (p, piece):
                if prefetch is not None and start == 0:
                    prefetch(p, steps)
                self._tile(total, p * at_once, at_once, start + piece * size, size)

    def _tile(self, total: _Sum, point, at_once: int, tile, size: int) -> None:
        """`at_once` points of `size` tiles, in registers."""
        part, spec = total.part, self.winograd
        acc = T.alloc_buffer((at_once * size, self.lanes), "float32", scope="local")
        places = [(q * size + t, point + q, tile + t) for q in range(at_once) for t in range(size)]
        for k, p, t in places:
            with T.vectorized(0, self.lanes) as v:
                start = part.products[p, t, v] if total.adds else T.float32(0)
                T.buffer_store(acc, start, [k, v])
        with self._channels(part.n, total.first, total.count) as channel:
            row = channel.block * spec.tiles + part.tile
            for k, p, t in places:
                with T.vectorized(0, self.lanes) as v:
                    product = self.u[part.n, p, row + t, channel.lane] * total.weight(p, channel, v)
                    T.buffer_store(acc, acc[k, v] + product, [k, v])
        for k, p, t in places:
            with T.vectorized(0, self.lanes) as v:
                T.buffer_store(part.products, acc[k, v], [p, t, v])

    def _transform_back(self, part: _Part, strip: _Strip, first) -> None:
        """A^T products A of every tile of a strip whose first row of tiles is given; epilogue."""
        spec, m = self.winograd, self.winograd.m
        for row, height, row_count in cut(strip.height, m):
            for column, width, column_count in cut(self.spec.y.width, m):
                with T.grid(row_count, column_count) as (i, j):
                    tile = (row // m + i) * spec.columns + column // m + j
                    at = (first * m + row + i * m, column + j * m)
                    self._tile_back(part, tile, at, (height, width))

    def _tile_back(self, part: _Part, tile, at: tuple, size: tuple[int, int]) -> None:
        m, points = self.winograd.m, self.winograd.side
        e = T.alloc_buffer((m, points, self.lanes), "float32", scope="local")
        with T.vectorized(0, self.lanes) as v:
            for c in range(points):
                column = [part.products[r * points + c, tile, v] for r in range(points)]
                for r, value in enumerate(output_transform(column, m)):
                    T.buffer_store(e, value, [r, c, v])
        with T.vectorized(0, self.lanes) as v:
            for r in range(size[0]):
                values = output_transform([e[r, c, v] for c in range(points)], m)
                for c in range(size[1]):
                    value = values[c]
                    if self.spec.bias:
                        value = value + self.bias[part.block * self.lanes + v]
                    self.store(value, part.n, part.block, at[0] + r, at[1] + c, v)
