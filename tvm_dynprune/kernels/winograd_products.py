# SPDX-License-Identifier: Apache-2.0
"""The products of a Winograd convolution: u times the weights, summed over open input channels.

Weights are transformed at compile time, or on the way (`Winograd.packs_transformed`): for few tiles
in registers, a row of points at a time, else through memory, some input channels at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import lcm
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.conv2d_builder import LINE, Conv2dBuilder, ask_for, repeated_lanes
from tvm_dynprune.kernels.gather import GatheredVector
from tvm_dynprune.kernels.registers import registers
from tvm_dynprune.kernels.tiling import cut_evenly
from tvm_dynprune.kernels.winograd import Winograd, pieces
from tvm_dynprune.kernels.winograd_transforms import twice_by_addition, weight_transform

_FEW_TILES = 64  # which leave no time to wait for weights
_IN_TURNS = 4  # sums, as many as a multiply-add takes cycles


@dataclass(frozen=True)
class Gathered:
    """A vector of output channels that is no block, and its biases."""

    vector: GatheredVector
    bias: Buffer | None


@dataclass(frozen=True)
class Products:
    """Those of some vectors of output channels for some of the tiles."""

    buffers: list[Buffer]  # of each vector: points, tiles, lanes
    u: Buffer
    n: tirx.Var
    blocks: list  # or Gathered
    following: list  # the blocks after them, or the last ones
    tile: Any  # the first one in u
    tiles: int


class _Channel(NamedTuple):
    """One open input channel: its position in a sum, its block, and its lane there."""

    index: Any
    block: Any
    lane: Any


@dataclass(frozen=True)
class _Sum:
    """products[p, t, :] = sum over open input channels c of u[p, t, c] * weight(k, p, c, :).

    Over `count` items of the list from position `first` on. What is in `products` is added to, but
    for the first of the `chunks` of a list; None stands for the only one.
    """

    products: Products
    first: Any
    count: Any
    chunk: Any = None


class WinogradProducts(Conv2dBuilder):
    """A builder with `multiply`, and the input u, or x where it `fuses_input`."""

    def __init__(self, spec: Winograd) -> None:
        super().__init__(spec.conv)
        self.winograd = spec

    def declare_input(self) -> None:
        """Declare u, or x, and weight."""
        if self.winograd.fuses_input:
            self.x = self.spec.x.argument("x")
        else:
            self.u = T.arg("u", T.buffer(self.winograd.transformed_shape, "float32"))
        self.weight = T.arg("weight", T.buffer(self.winograd.weight_shape, "float32"))

    def multiply(self, products: Products) -> None:
        """Emit what writes all products."""
        if not self.winograd.packs_transformed:
            self._multiply_by_chunks(products)
            return

        def weight(k: int, point, channel: _Channel, v):
            return self.weight[products.blocks[k], point, channel.block, channel.lane, v]

        def ask(item, point, points: int, share: tuple) -> None:
            self._ask_points(products, item, (point, points), share)

        total = _Sum(products, 0, self._items(products.n))
        self._multiply(total, weight, ask if self._prefetches_points else None)

    @contextmanager
    def input_blocks(self, n) -> Iterator[Any]:
        """Walk the open blocks of input channels."""
        with T.serial(0, self._items(n)) as position:
            yield self._item(n, position)

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
        return 1 if self.winograd.by_channel else self.winograd.block_channels

    @contextmanager
    def _channels(
        self,
        n,
        first,
        count,
        *,
        by_vector: bool = False,
        prefetch: Callable[..., None] | None = None,
    ) -> Iterator[_Channel]:
        """Walk the channels of `count` items; `by_vector` stops at the first of each block only.

        ``prefetch(item)`` comes before those of a block.
        """
        lanes, channels = self.spec.x.lanes, self._item_channels
        with T.serial(0, count) as i:
            item = self._item(n, first + i)
            if self.winograd.by_channel:
                yield _Channel(i, tirx.floordiv(item, lanes), tirx.floormod(item, lanes))
            else:
                if prefetch is not None:
                    prefetch(item)
                with T.serial(0, 1 if by_vector else channels) as c:
                    yield _Channel(i * channels + c, item, c)

    def _item(self, n, position):
        if not self.spec.open_in:
            return position
        item = self.list_in[n, position]
        return T.cast(item, "int64") if self.spec.wide else item

    def _multiply_by_chunks(self, products: Products) -> None:
        """Transform the weights of a few open input channels at a time, and add their products."""
        n, at_once = products.n, self._at_once // self._item_channels
        items = self._items(n)
        with T.serial(0, tirx.max(tirx.floordiv(items + at_once - 1, at_once), 1)) as chunk:
            first = chunk * at_once
            count = tirx.min(items - first, at_once)
            total = _Sum(products, first, count, chunk=chunk)
            if self.winograd.transforms_in_registers:
                self._multiply_rows(total, first + at_once)
            else:
                self._transform_and_multiply(total, first + at_once)

    def _multiply_rows(self, total: _Sum, later) -> None:
        """Every tile and point of a sum, a row of points at a time.

        Its weights are transformed in registers; those of the items from `later` on are prefetched.
        """
        at_once = self.winograd.tiles_at_once
        for start, size, count in cut_evenly(total.products.tiles, at_once):
            for row in range(self.winograd.side):
                with T.serial(0, count) as piece:
                    self._tile_row(total, row, start + piece * size, size, later)

    def _tile_row(self, total: _Sum, row: int, tile, size: int, later) -> None:
        """A row of points of `size` tiles of one vector, in registers."""
        products, side = total.products, self.winograd.side
        (block,) = products.blocks
        acc = registers(side, size, lanes=self.lanes)
        e = registers(3, lanes=self.lanes)
        self._start(acc)
        with self._channels(products.n, total.first, total.count) as channel:
            self._prefetch(products, channel, later, row, side)
            with T.vectorized(0, self.lanes) as v:
                for j in range(3):
                    column = [self._weight(block, channel, i, j, v) for i in range(3)]
                    T.buffer_store(e[j], self._transform(column)[row], [v])
            for q, t in np.ndindex(side, size):
                place = self._place(products, row * side + q, channel.block, tile + t)
                u = products.u[(*place, channel.lane)]
                with T.vectorized(0, self.lanes) as v:
                    weight = self._transform([one[v] for one in e])[q]
                    T.buffer_store(acc[q, t], acc[q, t][v] + u * weight, [v])
        places = [(row * side + q, tile + t) for q in range(side) for t in range(size)]
        self._finish(total, acc.reshape(1, -1), places)

    def _transform(self, g: list) -> list:
        return weight_transform(g, self.winograd.m, twice_by_addition)

    def _prefetch(self, products: Products, channel: _Channel, later, step=0, steps=1) -> None:
        """Ask for a share of the weights of an item that comes `later`, as far on as the channel.

        A list has gaps that no hardware foresees; after its end, the following block's begins.
        Each channel of an item is met in `steps` loops.
        """
        channels = self._item_channels
        lines = -(-9 * channels * self.lanes // LINE)
        share = -(-lines // (steps * channels))
        if step * channels * share >= lines:
            return
        n, items = products.n, self._items(products.n)
        position = later + tirx.floordiv(channel.index, channels)
        past = position >= items
        position = tirx.Select(past, position - items, position)
        item = self._item(n, tirx.max(tirx.min(position, items - 1), 0))
        start = (step * channels + tirx.floormod(channel.index, channels)) * share
        inner = [0] * (len(self.winograd.weight_shape) - 3)
        for block, following in zip(products.blocks, products.following, strict=True):
            of = tirx.Select(past, following, block)
            for line in range(share):
                ask_for(self.weight, (of, item, *inner, (start + line) * LINE))

    def _transform_and_multiply(self, total: _Sum, later) -> None:
        """The same through memory, for many tiles."""
        products, n = total.products, total.products.n
        row = self._at_once + 1  # one more: see `Winograd.transformed_shape`
        shape = (self.winograd.points * row, self.lanes)
        transformed = [T.alloc_buffer(shape, "float32") for _ in products.blocks]
        raw = self._gather_weight(total)
        with self._channels(n, total.first, total.count) as channel:
            if raw is None and self.winograd.tiles <= _FEW_TILES:
                self._prefetch(products, channel, later)
            for block, buffer in zip(products.blocks, transformed, strict=True):

                def given(i: int, j: int, v, block=block):
                    if raw is None:
                        return self._weight(block, channel, i, j, v)
                    return raw[channel.index * 9 + i * 3 + j, v]

                self._transform_weight(buffer, row, channel, given)

        def weight(k: int, point, channel: _Channel, v):
            return transformed[k][point * row + channel.index, v]

        self._multiply(total, weight)

    def _gather_weight(self, total: _Sum) -> Buffer | None:
        """The weights of a few open input channels for a gathered vector, 9 rows each."""
        products, first = total.products, total.products.blocks[0]
        if not isinstance(first, Gathered):
            return None
        vector = first.vector
        raw = vector.row_buffer(9 * self._at_once)
        with (
            vector.gather() as (block, copy),
            self._channels(products.n, total.first, total.count) as channel,
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

    def _transform_weight(self, transformed, row: int, channel: _Channel, given: Callable) -> None:
        """G g G^T of the weights of one input channel; a point has `row` vectors."""
        points, m = self.winograd.side, self.winograd.m
        e = registers(points, 3, lanes=self.lanes)
        with T.vectorized(0, self.lanes) as v:
            for j in range(3):
                column = [given(i, j, v) for i in range(3)]
                for i, value in enumerate(weight_transform(column, m)):
                    T.buffer_store(e[i, j], value, [v])
        with T.vectorized(0, self.lanes) as v:
            for i in range(points):
                values = weight_transform([e[i, j][v] for j in range(3)], m)
                for j, value in enumerate(values):
                    point = i * points + j
                    T.buffer_store(transformed, value, [point * row + channel.index, v])

    def _multiply(
        self,
        total: _Sum,
        weight: Callable[..., Any],
        ask: Callable[..., None] | None = None,
    ) -> None:
        """Every tile and point of a sum, in pieces that fit the registers.

        All tiles at some points before the next, so that weights come once from a far cache.
        ``ask(item, point, points, share)`` prefetches a share of an item's weights for the next.
        """
        points = self.winograd.points
        cut = pieces(total.products.tiles, points, self.winograd.sums)
        together = lcm(*(piece.at_once for piece in cut))
        with T.serial(0, points // together) as step:
            for start, size, count, at_once in cut:
                with T.grid(together // at_once, count) as (p, piece):
                    first = step * together + p * at_once
                    places = [
                        (first + q, start + piece * size + t)
                        for q in range(at_once)
                        for t in range(size)
                    ]

                    def prefetch(item, at=(p, piece), of=(together // at_once, count)) -> None:
                        if ask is not None:
                            share = (at[0] * of[1] + at[1], of[0] * of[1])
                            ask(item, (step + 1) * together, together, share)

                    self._tile(total, weight, places, None if start else prefetch)

    @property
    def _prefetches_points(self) -> bool:
        """Whether weights that are transformed are prefetched while those before are in use."""
        return self.spec.few_registers and not self.winograd.by_channel

    def _ask_points(self, products: Products, item, points: tuple, share: tuple) -> None:
        """Ask for a share, (number, of how many), of an item's weights at (first, count) points.

        After the last point of these blocks come the first ones of the blocks that follow.
        """
        per_point = -(-self._item_channels * self.lanes // LINE)
        per_block = points[1] * per_point
        lines = per_block * len(products.blocks)
        each = -(-lines // share[1])
        past = points[0] >= self.winograd.points
        first = tirx.Select(past, 0, points[0])
        blocks = [
            tirx.Select(past, following, block)
            for block, following in zip(products.blocks, products.following, strict=True)
        ]
        for k in range(each):
            line = tirx.min(share[0] * each + k, lines - 1)
            block = blocks[0]
            if len(blocks) > 1:
                block = tirx.Select(line < per_block, *blocks)
            line = tirx.floormod(line, per_block)
            point = first + tirx.floordiv(line, per_point)
            ask_for(self.weight, (block, point, item, 0, tirx.floormod(line, per_point) * LINE))

    def _tile(
        self,
        total: _Sum,
        weight: Callable[..., Any],
        places: list[tuple],
        prefetch: Callable[..., None] | None,
    ) -> None:
        """Some points of some tiles, in registers."""
        products = total.products
        acc = registers(len(products.blocks), len(places), lanes=self.lanes)
        self._start(acc)
        by_vector = self.spec.by_lane and not self.winograd.by_channel
        walk = (products.n, total.first, total.count)
        with self._channels(*walk, by_vector=by_vector, prefetch=prefetch) as channel:
            at = [self._place(products, p, channel.block, t) for p, t in places]
            if by_vector:
                self._add_by_lane(products.u, weight, acc, places, at, channel)
                at = []
            for t, where in enumerate(at):
                for k, one in enumerate(acc[:, t]):
                    with T.vectorized(0, self.lanes) as v:
                        u = products.u[(*where, channel.lane)]
                        product = u * weight(k, places[t][0], channel, v)
                        T.buffer_store(one, one[v] + product, [v])
        self._finish(total, acc, places)

    def _place(self, products: Products, point, block, tile) -> tuple:
        """Where in u a point of a tile of a block is."""
        fused = self.winograd.fuses_input
        sample, tiles = (0, products.tiles) if fused else (products.n, self.winograd.tiles)
        return sample, point, block * tiles + products.tile + tile

    def _start(self, acc: np.ndarray) -> None:
        for one in acc.flat:
            with T.vectorized(0, self.lanes) as v:
                T.buffer_store(one, T.float32(0), [v])

    def _finish(self, total: _Sum, acc: np.ndarray, places: list[tuple]) -> None:
        """Write the sums of vectors, and points and tiles, with those of the chunks before."""
        buffers = total.products.buffers
        if total.chunk is not None:
            with T.If(total.chunk > 0), T.Then():
                for (k, i), one in np.ndenumerate(acc):
                    with T.vectorized(0, self.lanes) as v:
                        T.buffer_store(one, one[v] + buffers[k][(*places[i], v)], [v])
        for (k, i), one in np.ndenumerate(acc):
            with T.vectorized(0, self.lanes) as v:
                T.buffer_store(buffers[k], one[v], [*places[i], v])

    def _add_by_lane(self, u: Buffer, weight: Callable, acc, places, at, channel: _Channel) -> None:
        """Multiply all channels of a block: sums in turns, so that none waits for itself."""
        channels, v = self.spec.x.lanes, T.Ramp(0, 1, self.lanes)
        for start in range(0, len(places), _IN_TURNS):
            some = slice(start, start + _IN_TURNS)
            inputs = [repeated_lanes(u, where, channels, self.lanes) for where in at[some]]
            for lane in range(channels):
                one = _Channel(channel.index + lane, channel.block, lane)
                for to, (p, _), one_u in zip(acc[0, some], places[some], inputs, strict=True):
                    T.buffer_store(to, to[v] + one_u[lane] * weight(0, p, one, v), [v])
