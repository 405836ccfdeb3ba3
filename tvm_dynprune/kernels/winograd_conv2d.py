# SPDX-License-Identifier: Apache-2.0
"""The second kernel of a Winograd convolution: products, the transform back, and the epilogue."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.conv2d import LINE, Conv2dBuilder, ask_for, repeated_lanes
from tvm_dynprune.kernels.feature_map import zero_halo
from tvm_dynprune.kernels.gather import GatheredVector
from tvm_dynprune.kernels.registers import registers
from tvm_dynprune.kernels.tiling import Part, cut, cut_evenly
from tvm_dynprune.kernels.winograd import Winograd, pieces
from tvm_dynprune.kernels.winograd_transforms import output_transform, weight_transform

_FEW_BLOCKS = 16  # whose open ones may not keep all threads busy
_MOST_PARTS = 4
_IN_TURNS = 4  # sums, as many as a multiply-add takes cycles


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


@dataclass(frozen=True)
class _Gathered:
    """A vector of output channels that is no block, and its biases."""

    vector: GatheredVector
    bias: Buffer | None


@dataclass(frozen=True)
class _Part:
    """The products of one vector of output channels for some of the tiles."""

    products: Buffer  # points, tiles + 1, lanes
    n: tirx.Var
    block: Any  # or _Gathered
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

    def gathered(self, n, vector: GatheredVector) -> None:
        bias = self.gathered_bias(vector) if self.spec.bias else None
        for strip, count in _strips(self.winograd):
            with T.serial(0, count) as i:
                self._strip(n, _Gathered(vector, bias), strip, strip.row + i * strip.rows)

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
    def _at_once(self) -> int:
        """Input channels whose weights are transformed together."""
        return max(self.spec.schedule.channels_at_once, self._item_channels)

    @property
    def _item_channels(self) -> int:
        """Input channels of an item."""
        return 1 if self.winograd.by_channel else self.spec.x.lanes

    @contextmanager
    def _channels(self, n, first, count, *, by_vector: bool = False) -> Iterator[_Channel]:
        """Walk the channels of `count` items; `by_vector` stops at the first of each block only."""
        lanes = self.spec.x.lanes
        with T.serial(0, count) as i:
            item = self._item(n, first + i)
            if self.winograd.by_channel:
                yield _Channel(i, tirx.floordiv(item, lanes), tirx.floormod(item, lanes))
            else:
                with T.serial(0, 1 if by_vector else lanes) as c:
                    yield _Channel(i * lanes + c, item, c)

    def _item(self, n, position):
        if not self.spec.open_in:
            return position
        item = self.list_in[n, position]
        return T.cast(item, "int64") if self.spec.by_lane else item

    def _transform_and_multiply(self, part: _Part) -> None:
        """Transform the weights of a few open input channels at a time, and add their products."""
        spec, lanes, n = self.winograd, self.lanes, part.n
        items, at_once = self._items(n), self._at_once // self._item_channels
        # One row more: see `Winograd.transformed_shape`.
        transformed = T.alloc_buffer((spec.points, self._at_once + 1, lanes), "float32")
        with T.grid(spec.points, part.tiles) as (p, t), T.vectorized(0, lanes) as v:
            T.buffer_store(part.products, T.float32(0), [p, t, v])
        with T.serial(0, tirx.floordiv(items + at_once - 1, at_once)) as chunk:
            first = chunk * at_once
            count = tirx.min(items - first, at_once)
            raw = self._gather_weight(part, first, count)
            with self._channels(n, first, count) as channel:

                def given(i: int, j: int, v):
                    if raw is None:
                        return self._weight(part.block, channel, i, j, v)
                    return raw[channel.index * 9 + i * 3 + j, v]

                self._transform_weight(transformed, channel, given)

            def weight(point, channel: _Channel, v):
                return transformed[point, channel.index, v]

            def prefetch(step, steps: int) -> None:
                self._prefetch(part, first + at_once, step, steps)

            total = _Sum(part, first, count, weight, adds=True)
            self._multiply(total, prefetch if raw is None else None)

    def _gather_weight(self, part: _Part, first, count) -> Buffer | None:
        """The weights of a few open input channels for a gathered vector, 9 rows each."""
        if not isinstance(part.block, _Gathered):
            return None
        vector = part.block.vector
        raw = vector.row_buffer(9 * self._at_once)
        with (
            vector.gather() as (block, copy),
            self._channels(part.n, first, count) as channel,
            T.grid(3, 3) as (i, j),
        ):
            copy(
                raw,
                channel.index * 9 + i * 3 + j,
                lambda every: self._weight(block, channel, i, j, every),
            )
        return raw

    def _weight(self, block, channel: _Channel, i, j, lane):
        """A weight that is not transformed."""
        if self.winograd.packs_by_channel:
            number = channel.block * self.spec.x.lanes + channel.lane
            return self.weight[block, number, i, j, lane]
        return self.weight[block, channel.block, i, j, channel.lane, lane]

    def _transform_weight(self, transformed, channel: _Channel, given: Callable) -> None:
        """G g G^T of the weights of one input channel."""
        points, m = self.winograd.side, self.winograd.m
        e = registers(points, 3, lanes=self.lanes)
        with T.vectorized(0, self.lanes) as v:
            for j in range(3):
                column = [given(i, j, v) for i in range(3)]
                for i, value in enumerate(weight_transform(column, m)):
                    T.buffer_store(e[i, j], value, [v])
        with T.vectorized(0, self.lanes) as v:
            for i in range(points):
                row = weight_transform([e[i, j][v] for j in range(3)], m)
                for j, value in enumerate(row):
                    T.buffer_store(transformed, value, [i * points + j, channel.index, v])

    def _prefetch(self, part: _Part, first, step, steps: int) -> None:
        """Ask for a share of the next weights: a list has gaps that no hardware foresees."""
        item = 9 * self._item_channels * self.lanes  # its weights
        lines = -(-item // LINE)
        share = -(-self._at_once // self._item_channels * lines // steps)
        for k in range(max(1, share // lines)):
            start = step * share + k * lines
            position = tirx.min(first + tirx.floordiv(start, lines), self._items(part.n) - 1)
            inner = [0] * (len(self.winograd.weight_shape) - 3)
            with T.unroll(0, min(share, lines)) as line:
                at = (tirx.floormod(start, lines) + line) * LINE
                ask_for(self.weight, (part.block, self._item(part.n, position), *inner, at))

    def _multiply(self, total: _Sum, prefetch: Callable[..., None] | None = None) -> None:
        """Every tile and point of a sum, in pieces that fit the registers."""
        points = self.winograd.points
        for start, size, count, at_once in pieces(total.part.tiles, points, self.winograd.sums):
            steps = points // at_once
            with T.grid(steps, count) as (p, piece):
                if prefetch is not None and start == 0:
                    prefetch(p, steps)
                self._tile(total, p * at_once, at_once, start + piece * size, size)

    def _tile(self, total: _Sum, point, at_once: int, tile, size: int) -> None:
        """`at_once` points of `size` tiles, in registers."""
        part, spec = total.part, self.winograd
        acc = registers(at_once * size, lanes=self.lanes)
        places = [(q * size + t, point + q, tile + t) for q in range(at_once) for t in range(size)]
        for one in acc:
            with T.vectorized(0, self.lanes) as v:
                T.buffer_store(one, T.float32(0), [v])
        by_vector = self.spec.by_lane and not spec.by_channel
        channels = self._channels(part.n, total.first, total.count, by_vector=by_vector)
        with channels as channel:
            row = channel.block * spec.tiles + part.tile
            at = [(part.n, p, row + t) for _, p, t in places]
            if by_vector:
                self._add_by_lane(acc, places, at, channel, total.weight)
                at = []
            for (k, p, _), where in zip(places, at, strict=False):
                with T.vectorized(0, self.lanes) as v:
                    product = self.u[(*where, channel.lane)] * total.weight(p, channel, v)
                    T.buffer_store(acc[k], acc[k][v] + product, [v])
        for k, p, t in places:
            with T.vectorized(0, self.lanes) as v:
                value = part.products[p, t, v] + acc[k][v] if total.adds else acc[k][v]
                T.buffer_store(part.products, value, [p, t, v])

    def _add_by_lane(self, acc, places: list, at: list[tuple], channel: _Channel, weight) -> None:
        """Multiply all channels of a block: sums in turns, so that none waits for itself."""
        lanes, v = self.spec.x.lanes, T.Ramp(0, 1, self.lanes)
        for start in range(0, len(places), _IN_TURNS):
            some = slice(start, start + _IN_TURNS)
            inputs = [repeated_lanes(self.u, where, lanes) for where in at[some]]
            for lane in range(lanes):
                one = _Channel(channel.index + lane, channel.block, lane)
                for (k, p, _), u in zip(places[some], inputs, strict=True):
                    product = u[lane] * weight(p, one, v)
                    T.buffer_store(acc[k], acc[k][v] + product, [v])

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
        e = registers(m, points, lanes=self.lanes)
        with T.vectorized(0, self.lanes) as v:
            for c in range(points):
                column = [part.products[r * points + c, tile, v] for r in range(points)]
                for r, value in enumerate(output_transform(column, m)):
                    T.buffer_store(e[r, c], value, [v])
        if isinstance(part.block, _Gathered):
            self._scatter(part, part.block, e, at, size)
            return
        with T.vectorized(0, self.lanes) as v:
            for r in range(size[0]):
                values = output_transform([e[r, c][v] for c in range(points)], m)
                for c in range(size[1]):
                    value = values[c]
                    if self.spec.bias:
                        value = value + self.bias[part.block * self.lanes + v]
                    self.store(value, part.n, part.block, at[0] + r, at[1] + c, v)

    def _scatter(
        self, part: _Part, gathered: _Gathered, e: np.ndarray, at: tuple, size: tuple[int, int]
    ) -> None:
        """The second half of the transform back, to the channels of a gathered vector."""
        m, points = self.winograd.m, self.winograd.side
        results = T.alloc_buffer((size[0] * size[1], self.lanes), "float32")
        with T.vectorized(0, self.lanes) as v:
            for r in range(size[0]):
                values = output_transform([e[r, c][v] for c in range(points)], m)
                for c in range(size[1]):
                    bias = T.float32(0) if gathered.bias is None else gathered.bias[0, v]
                    T.buffer_store(results, values[c] + bias, [r * size[1] + c, v])
        places = [(at[0] + r, at[1] + c) for r in range(size[0]) for c in range(size[1])]
        self.scatter(part.n, gathered.vector, results, places)
