# SPDX-License-Identifier: Apache-2.0
"""The sums of a direct convolution for vectors put together from open output channels.

Some input channels at a time, for all output channels: each weight is moved once, and closed input
channels are long runs of memory that nobody fetches.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.conv2d_builder import LINE, ask_for
from tvm_dynprune.kernels.direct_sums import Chunk, DirectSums, Sums
from tvm_dynprune.kernels.gather import GatheredVectors
from tvm_dynprune.kernels.reduction import Step
from tvm_dynprune.kernels.tiling import Part, Tile

_NEAR = 24 * 1024  # bytes of weights, put together, that the nearest cache has room for
_FEW_PIXELS = 256  # for which threads better share the output channels
_MOST_PARTS = 4
_PART_BLOCKS = 8  # at least, of output channels


class GatheredSums(DirectSums):
    """A builder with `gathered`, of weights (C_in, blocks, KH, KW, lanes)."""

    def gathered(self, n) -> None:
        """Emit all: threads share the vectors, or where pixels are many, the pixels."""
        y = self.spec.y
        if y.height * y.width > _FEW_PIXELS:
            parts = min(_MOST_PARTS, sum(tile.row_count for tile in self.tiles))
            with T.parallel(0, parts) as index, T.If(self.count_out[n] > 0), T.Then():
                vectors = self.gathered_vectors(n, 0, y.blocks)
                self._sum_gathered(n, vectors, Part(index, parts))
            return
        parts = max(1, min(_MOST_PARTS, y.blocks // _PART_BLOCKS))
        together = self.vectors * self.lanes
        share = -(-self.count_out[n] // (parts * together)) * together
        most = -(-y.blocks // (parts * self.vectors)) * self.vectors
        with T.parallel(0, parts) as index, T.If(index * share < self.count_out[n]), T.Then():
            self._sum_gathered(n, self.gathered_vectors(n, index * share, most, share), Part())

    def _sum_gathered(self, n, vectors: GatheredVectors, part: Part) -> None:
        item = self.spec.reduction.item_channels
        size = 4 * int(np.prod(self.spec.kernel)) * vectors.vectors * self.lanes
        at_once = max(1, _NEAR // (size * item))
        packed = vectors.row_buffer(at_once * item, *self.spec.kernel)
        bias = self.gathered_bias(vectors) if self.spec.bias else None
        with self.chunks(n, at_once, vectors.vectors) as chunk:
            self._gather(n, vectors, packed, chunk.within)
            ask = self._ask(n, vectors, chunk, at_once) if self.prefetches else None
            for first, times, count in self.vectors_at_once(vectors.count):
                with T.serial(0, times) as i:
                    number = first + i * count
                    asks = partial(ask, number, count) if ask else None
                    sums = self._sums(n, vectors, (number, count), packed, bias, asks)
                    self.pixels(
                        part,
                        lambda tile, *at, sums=sums, number=number: self.chunk_tile(
                            n, chunk, tile, at, sums, number
                        ),
                    )

    def _gather(self, n, vectors: GatheredVectors, packed: Buffer, within: tuple) -> None:
        """Put together the weights of a chunk: all output channels of one input channel first."""
        lists = (self.list_in, self.count_in) if self.spec.open_in else (None, None)
        with (
            self.spec.reduction.channels(n, *lists, within) as (index, channel),
            vectors.gather() as (block, copy),
        ):
            with T.grid(*self.spec.kernel) as (i, j):
                copy(packed, (index, i, j), lambda every: self.weight[channel, block, i, j, every])

    def _ask(self, n, vectors: GatheredVectors, chunk: Chunk, at_once: int) -> Callable[..., None]:
        """What asks for the weights of the next chunk, a share at each place of each tile.

        Asked for all at once they would hold up whatever loads next.
        """
        window = int(np.prod(self.spec.kernel))
        lines = vectors.blocks * (window * self.lanes) // LINE + 1
        tiles = sum(tile.row_count * tile.column_count for tile in self.tiles)
        places = tiles * window
        count = tirx.floordiv(vectors.count + self.lanes - 1, self.lanes)
        each = T.alloc_buffer((1,), "int32")
        T.buffer_store(each, tirx.floordiv(lines + places * count - 1, places * count), [0])
        items = self.items(n)

        def ask(vector, vectors_at_once: int, tile, at, i, j) -> None:
            place = self.number(tile, at)[0] * window + i * self.spec.kernel[1] + j
            first = (vector * places + vectors_at_once * place) * each[0]
            with T.serial(0, vectors_at_once * each[0]) as k:
                line = first + k
                with T.If(line < lines), T.Then(), T.serial(0, at_once) as c:
                    item = tirx.max(tirx.min(chunk.later + c, items - 1), 0)
                    if self.spec.open_in:
                        item = self.list_in[n, item]
                    channel = item * self.spec.reduction.item_channels
                    ask_for(self.weight, (channel, vectors.first, 0, 0, line * LINE))

        return ask

    def _sums(
        self,
        n,
        vectors: GatheredVectors,
        some: tuple,
        packed: Buffer,
        bias: Buffer | None,
        ask,
    ) -> Sums:
        """Those of some vectors, (number of the first, how many)."""
        (number, count), lanes = some, self.lanes

        def weight(step: Step, k: int, v):
            first = (number + k) * lanes
            every = T.Ramp(first + v.base, 1, lanes) if isinstance(v, tirx.Ramp) else first + v
            return packed[step.index, step.kh, step.kw, every]

        def start(acc) -> None:
            for (k, _), one in np.ndenumerate(acc):
                with T.vectorized(0, lanes) as v:
                    value = T.float32(0) if bias is None else bias[0, (number + k) * lanes + v]
                    T.buffer_store(one, value, [v])

        def finish(acc, tile: Tile, row, column) -> None:
            places = [(row + i, column + j) for i, j in tile.pixels]
            for k in range(count):
                values = T.alloc_buffer((len(places), lanes), "float32")
                for t, one in enumerate(acc[k]):
                    with T.vectorized(0, lanes) as v:
                        T.buffer_store(values, one[v], [t, v])
                self.scatter(n, vectors, number + k, values, places)

        return Sums([None] * count, [None] * count, weight, start, finish, ask_chunk=ask)
