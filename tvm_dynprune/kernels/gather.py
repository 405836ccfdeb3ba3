# SPDX-License-Identifier: Apache-2.0
"""GatheredVectors: vectors of output channels put together from those that a list names.

Where channels open by less than a vector, those of one vector lie in a few neighbouring blocks. A
row of weights is put together block by block: the wanted lanes of a block move to the front (one
instruction where the target `permutes`) and are written behind what the blocks before it gave.
Rows are a vector longer than what they are for, so that what is written behind the last wanted
lane harms no other.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer


class GatheredVectors:
    """The open channels at some positions of a list, by vectors; emits how to find them.

    Parameters
    ----------
    items
        List (N, C) int32 of channels, ascending as far as they are open.
    n, start, count
        Sample, the first position, and how many positions, at least one.
    vectors
        Of how many channels there may be; the last ones may lack some, or all.
    blocks, lanes
        Of the output.
    permutes
        Of the target; see `Conv2d`.
    """

    def __init__(
        self,
        items: Buffer,
        n,
        start,
        count,
        vectors: int,
        *,
        blocks: int,
        lanes: int,
        permutes: str,
    ) -> None:
        self.vectors, self.lanes = vectors, lanes
        self._items, self._n, self._start = items, n, start
        self._permutes = permutes
        self.count = count
        self.first = tirx.floordiv(self._channel(0), lanes)
        self.blocks = tirx.floordiv(self._channel(count - 1), lanes) - self.first + 1
        self._wanted = T.alloc_buffer((blocks, lanes), "int32")
        self._place = T.alloc_buffer((blocks,), "int32")
        with T.serial(0, self.blocks) as b:
            T.buffer_store(self._place, T.int32(vectors * lanes), [self.first + b])
            with T.vectorized(0, lanes) as v:
                T.buffer_store(self._wanted, T.int32(0), [self.first + b, v])
        with T.serial(0, count) as position:
            block, lane = self._split(position)
            T.buffer_store(self._place, tirx.min(self._place[block], position), [block])
            T.buffer_store(self._wanted, lane, [block, position - self._place[block]])

    def row_buffer(self, *rows: int) -> Buffer:
        """A buffer for `gather`: (*rows, lanes of the vectors and one more) float32."""
        return T.alloc_buffer((*rows, (self.vectors + 1) * self.lanes), "float32")

    @contextmanager
    def gather(self) -> Iterator[tuple]:
        """Emit the loop over blocks; yields a block and what copies its wanted lanes to a row.

        ``copy(rows, at, source)`` is to be called for each row of a `row_buffer`, where
        ``source(lanes)`` is a row of the block.
        """
        lanes = self.lanes
        with T.serial(0, self.blocks) as b:
            block = self.first + b
            every = T.ramp(T.int32(0), 1, lanes)
            wanted, place = self._wanted[block, every], self._place[block]

            def copy(rows: Buffer, at: tuple, source: Callable) -> None:
                if self._permutes:
                    call = f"float32x{lanes}", self._permutes
                    front = tirx.call_llvm_pure_intrin(*call, source(every), wanted)
                else:
                    front = source(wanted)
                T.buffer_store(rows, front, [*at, T.ramp(place, 1, lanes)])

            yield block, copy

    def scatter(self, number, values: Buffer, places: Sequence[tuple], store: Callable) -> None:
        """Emit ``store(value, channel, block, lane, row, column)`` for one of the vectors.

        For each of its channels, and each place. `values` (places, lanes) is in memory, as the
        lanes are gone through one by one.
        """
        first = number * self.lanes
        with T.serial(0, tirx.max(tirx.min(self.count - first, self.lanes), 0)) as k:
            block, lane = self._split(first + k)
            for i, (row, column) in enumerate(places):
                store(values[i, k], self._channel(first + k), block, lane, row, column)

    def _channel(self, position):
        return self._items[self._n, self._start + position]

    def _split(self, position) -> tuple:
        channel = self._channel(position)
        return tirx.floordiv(channel, self.lanes), tirx.floormod(channel, self.lanes)
