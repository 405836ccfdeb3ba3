# SPDX-License-Identifier: Apache-2.0
"""The sums of a Winograd convolution: u times weights over open input channels, in registers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import lcm
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.conv2d_builder import Conv2dBuilder
from tvm_dynprune.kernels.gather import GatheredVectors
from tvm_dynprune.kernels.reduction import wide
from tvm_dynprune.kernels.registers import registers, repeated_lanes
from tvm_dynprune.kernels.winograd import Winograd, pieces

_IN_TURNS = 4  # sums, as many as a multiply-add takes cycles


@dataclass(frozen=True)
class Gathered:
    """A vector of output channels that is no block: one of several, and the biases of these."""

    vectors: GatheredVectors
    number: int
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


class Channel(NamedTuple):
    """One open input channel: its position in a sum, its block, and its lane there."""

    index: Any
    block: Any
    lane: Any


@dataclass(frozen=True)
class Sum:
    """products[p, t, :] = sum over open input channels c of u[p, t, c] * weight(k, p, c, :).

    Over `count` items of the list from position `first` on. What is in `products` is added to, but
    for the first of the `chunks` of a list; None stands for the only one.
    """

    products: Products
    first: Any
    count: Any
    chunk: Any = None


class WinogradSums(Conv2dBuilder):
    """A builder with `sum_up`, and the input u, or x where it `fuses_input`."""

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

    @contextmanager
    def input_blocks(self, n) -> Iterator[Any]:
        """Walk the open blocks of input channels."""
        with T.serial(0, self.items(n)) as position:
            yield self.item(n, position)

    @property
    def item_channels(self) -> int:
        """Input channels of an item."""
        return 1 if self.winograd.by_channel else self.winograd.block_channels

    @contextmanager
    def channels(
        self,
        n,
        first,
        count,
        *,
        by_vector: bool = False,
        prefetch: Callable[..., None] | None = None,
    ) -> Iterator[Channel]:
        """Walk the channels of `count` items; `by_vector` stops at the first of each block only.

        ``prefetch(item)`` comes before those of a block.
        """
        lanes, channels = self.spec.x.lanes, self.item_channels
        with T.serial(0, count) as i:
            item = self.item(n, first + i)
            if self.winograd.by_channel:
                yield Channel(i, tirx.floordiv(item, lanes), tirx.floormod(item, lanes))
            else:
                if prefetch is not None:
                    prefetch(item)
                with T.serial(0, 1 if by_vector else channels) as c:
                    yield Channel(i * channels + c, item, c)

    def item(self, n, position):
        """Emit which block of input channels, or channel, is at a position of the list."""
        return wide(self.list_in[n, position] if self.spec.open_in else position)

    def sum_up(
        self,
        total: Sum,
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
                    prefetch = None
                    if ask is not None and not start:
                        share = (p * count + piece, together // at_once * count)
                        following = (step + 1) * together
                        prefetch = partial(ask, point=following, points=together, share=share)
                    self._tile(total, weight, places, prefetch)

    def _tile(
        self,
        total: Sum,
        weight: Callable[..., Any],
        places: list[tuple],
        prefetch: Callable[..., None] | None,
    ) -> None:
        """Some points of some tiles, in registers."""
        products = total.products
        acc = registers(len(products.blocks), len(places), lanes=self.lanes)
        self.start(acc)
        by_vector = self.spec.by_lane and not self.winograd.by_channel
        walk = (products.n, total.first, total.count)
        with self.channels(*walk, by_vector=by_vector, prefetch=prefetch) as channel:
            at = [self.place(products, p, channel.block, t) for p, t in places]
            if by_vector:
                self._add_by_lane(products.u, weight, acc, places, at, channel)
                at = []
            for t, where in enumerate(at):
                for k, one in enumerate(acc[:, t]):
                    with T.vectorized(0, self.lanes) as v:
                        u = products.u[(*where, channel.lane)]
                        product = u * weight(k, places[t][0], channel, v)
                        T.buffer_store(one, one[v] + product, [v])
        self.finish(total, acc, places)

    def place(self, products: Products, point, block, tile) -> tuple:
        """Where in u a point of a tile of a block is."""
        fused = self.winograd.fuses_input
        sample, tiles = (0, products.tiles) if fused else (products.n, self.winograd.tiles)
        return sample, point, block * tiles + products.tile + tile

    def start(self, acc: np.ndarray) -> None:
        """Emit zeros."""
        for one in acc.flat:
            with T.vectorized(0, self.lanes) as v:
                T.buffer_store(one, T.float32(0), [v])

    def finish(self, total: Sum, acc: np.ndarray, places: list[tuple]) -> None:
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

    def _add_by_lane(self, u: Buffer, weight: Callable, acc, places, at, channel: Channel) -> None:
        """Multiply all channels of a block: sums in turns, so that none waits for itself."""
        channels, v = self.spec.x.lanes, T.Ramp(0, 1, self.lanes)
        for start in range(0, len(places), _IN_TURNS):
            some = slice(start, start + _IN_TURNS)
            inputs = [repeated_lanes(u, where, channels, self.lanes) for where in at[some]]
            for lane in range(channels):
                one = Channel(channel.index + lane, channel.block, lane)
                for to, (p, _), one_u in zip(acc[0, some], places[some], inputs, strict=True):
                    T.buffer_store(to, to[v] + one_u[lane] * weight(0, p, one, v), [v])
