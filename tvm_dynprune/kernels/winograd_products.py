# SPDX-License-Identifier: Apache-2.0
"""The products of a Winograd convolution, and where the weights for them come from.

Weights are transformed at compile time, or on the way (`Winograd.packs_transformed`): for few tiles
in registers, a row of points at a time, else through memory, some input channels at a time.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.conv2d_builder import LINE, ask_for
from tvm_dynprune.kernels.registers import registers
from tvm_dynprune.kernels.tiling import cut_evenly
from tvm_dynprune.kernels.winograd_sums import Channel, Gathered, Products, Sum, WinogradSums
from tvm_dynprune.kernels.winograd_transforms import twice_by_addition, weight_transform

_FEW_TILES = 64  # which leave no time to wait for weights


class WinogradProducts(WinogradSums):
    """A builder with `multiply`."""

    def multiply(self, products: Products) -> None:
        """Emit what writes all products."""
        if not self.winograd.packs_transformed:
            self._multiply_by_chunks(products)
            return

        def weight(k: int, point, channel: Channel, v):
            return self.weight[products.blocks[k], point, channel.block, channel.lane, v]

        total = Sum(products, 0, self.items(products.n))
        ask = partial(self._ask_points, products) if self._prefetches_points else None
        self.sum_up(total, weight, ask)

    @property
    def _prefetches_points(self) -> bool:
        """Whether weights that are transformed are prefetched while those before are in use."""
        return not self.spec.by_lane and not self.winograd.by_channel

    def _ask_points(self, products: Products, item, point, points: int, share: tuple) -> None:
        """Ask for a share, (number, of how many), of an item's weights at `points` from `point` on.

        After the last point of these blocks come the first ones of the blocks that follow.
        """
        per_point = -(-self.item_channels * self.lanes // LINE)
        per_block = points * per_point
        lines = per_block * len(products.blocks)
        each = -(-lines // share[1])
        past = point >= self.winograd.points
        first = tirx.Select(past, 0, point)
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
            at = first + tirx.floordiv(line, per_point)
            ask_for(self.weight, (block, at, item, 0, tirx.floormod(line, per_point) * LINE))

    @property
    def _at_once(self) -> int:
        """Input channels whose weights are transformed together."""
        return max(self.spec.schedule.channels_at_once, self.item_channels)

    def _multiply_by_chunks(self, products: Products) -> None:
        """Transform the weights of a few open input channels at a time, and add their products."""
        n, at_once = products.n, self._at_once // self.item_channels
        items = self.items(n)
        with T.serial(0, tirx.max(tirx.floordiv(items + at_once - 1, at_once), 1)) as chunk:
            first = chunk * at_once
            count = tirx.min(items - first, at_once)
            total = Sum(products, first, count, chunk=chunk)
            if self.winograd.transforms_in_registers:
                self._multiply_rows(total, first + at_once)
            else:
                self._transform_and_multiply(total, first + at_once)

    def _multiply_rows(self, total: Sum, later) -> None:
        """Every tile and point of a sum, a row of points at a time.

        Its weights are transformed in registers; those of the items from `later` on are prefetched.
        """
        at_once = self.winograd.tiles_at_once
        for start, size, count in cut_evenly(total.products.tiles, at_once):
            for row in range(self.winograd.side):
                with T.serial(0, count) as piece:
                    self._tile_row(total, row, start + piece * size, size, later)

    def _tile_row(self, total: Sum, row: int, tile, size: int, later) -> None:
        """A row of points of `size` tiles of one vector, in registers."""
        products, side = total.products, self.winograd.side
        (block,) = products.blocks
        acc = registers(side, size, lanes=self.lanes)
        e = registers(3, lanes=self.lanes)
        self.start(acc)
        with self.channels(products.n, total.first, total.count) as channel:
            self._prefetch(products, channel, later, row, side)
            with T.vectorized(0, self.lanes) as v:
                for j in range(3):
                    column = [self._weight(block, channel, i, j, v) for i in range(3)]
                    T.buffer_store(e[j], self._transform(column)[row], [v])
            for q, t in np.ndindex(side, size):
                place = self.place(products, row * side + q, channel.block, tile + t)
                u = products.u[(*place, channel.lane)]
                with T.vectorized(0, self.lanes) as v:
                    weight = self._transform([one[v] for one in e])[q]
                    T.buffer_store(acc[q, t], acc[q, t][v] + u * weight, [v])
        places = [(row * side + q, tile + t) for q in range(side) for t in range(size)]
        self.finish(total, acc.reshape(1, -1), places)

    def _transform(self, g: list) -> list:
        return weight_transform(g, self.winograd.m, twice_by_addition)

    def _prefetch(self, products: Products, channel: Channel, later, step=0, steps=1) -> None:
        """Ask for a share of the weights of an item that comes `later`, as far on as the channel.

        A list has gaps that no hardware foresees; after its end, the following block's begins.
        Each channel of an item is met in `steps` loops.
        """
        channels = self.item_channels
        lines = -(-9 * channels * self.lanes // LINE)
        share = -(-lines // (steps * channels))
        if step * channels * share >= lines:
            return
        n, items = products.n, self.items(products.n)
        position = later + tirx.floordiv(channel.index, channels)
        past = position >= items
        position = tirx.Select(past, position - items, position)
        item = self.item(n, tirx.max(tirx.min(position, items - 1), 0))
        start = (step * channels + tirx.floormod(channel.index, channels)) * share
        inner = [0] * (len(self.winograd.weight_shape) - 3)
        for block, following in zip(products.blocks, products.following, strict=True):
            of = tirx.Select(past, following, block)
            for line in range(share):
                ask_for(self.weight, (of, item, *inner, (start + line) * LINE))

    def _transform_and_multiply(self, total: Sum, later) -> None:
        """The same through memory, for many tiles."""
        products, n = total.products, total.products.n
        row = self._at_once + 1  # one more: see `Winograd.transformed_shape`
        shape = (self.winograd.points * row, self.lanes)
        transformed = [T.alloc_buffer(shape, "float32") for _ in products.blocks]
        raw = self._gather_weight(total)
        with self.channels(n, total.first, total.count) as channel:
            if raw is None and self.winograd.tiles <= _FEW_TILES:
                self._prefetch(products, channel, later)
            for k, (block, buffer) in enumerate(zip(products.blocks, transformed, strict=True)):

                def given(i: int, j: int, v, k=k, block=block):
                    if raw is None:
                        return self._weight(block, channel, i, j, v)
                    return raw[channel.index * 9 + i * 3 + j, k * self.lanes + v]

                self._transform_weight(buffer, row, channel, given)

        def weight(k: int, point, channel: Channel, v):
            return transformed[k][point * row + channel.index, v]

        self.sum_up(total, weight)

    def _gather_weight(self, total: Sum) -> Buffer | None:
        """The weights of a few open input channels for gathered vectors, 9 rows each."""
        products, first = total.products, total.products.blocks[0]
        if not isinstance(first, Gathered):
            return None
        vectors = first.vectors
        raw = vectors.row_buffer(9 * self._at_once)
        with (
            vectors.gather() as (block, copy),
            self.channels(products.n, total.first, total.count) as channel,
            T.grid(3, 3) as (i, j),
        ):
            copy(
                raw,
                (channel.index * 9 + i * 3 + j,),
                lambda every: self._weight(block, channel, i, j, every),
            )
        return raw

    def _weight(self, block, channel: Channel, i, j, lane):
        """A weight that is not transformed."""
        if self.winograd.packs_by_channel:
            number = channel.block * self.spec.x.lanes + channel.lane
            return self.weight[block, number, i, j, lane]
        return self.weight[block, channel.block, i, j, channel.lane, lane]

    def _transform_weight(self, transformed, row: int, channel: Channel, given: Callable) -> None:
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
