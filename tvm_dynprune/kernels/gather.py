# SPDX-License-Identifier: Apache-2.0
"""GatheredVector: a vector of output channels put together from those that a list names.

Where channels open by less than a vector, those of one vector lie in a few neighbouring blocks. A
row of weights is put together block by block: the wanted lanes of a block move to the front
(one instruction with AVX-512) and are written behind what the blocks before it gave. Rows are two
vectors long, so that what is written behind the last wanted lane harms no other row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer


class GatheredVector:
    """The open channels at positions ``vector * lanes`` and on of a list; emits how to find them.

    Parameters
    ----------
    items
        List (N, C) int32 of channels, the first `count` open, ascending.
    n, vector, count
        Sample, which vector of the open channels, and how many there are.
    blocks, lanes
        Of the output.
    """

    def __init__(self, items: Buffer, n, vector, count, *, blocks: int, lanes: int) -> None:
        self.lanes, self._items, self._n, self._start = lanes, items, n, vector * lanes
        self.filled = tirx.min(count - self._start, lanes)
        self._first = tirx.floordiv(self.channel(0), lanes)
        self._blocks = tirx.floordiv(self.channel(self.filled - 1), lanes) - self._first + 1
        self._wanted = T.alloc_buffer((blocks, lanes), "int8")
        self._place = T.alloc_buffer((blocks,), "int32")
        with T.serial(0, self._blocks) as b:
            T.buffer_store(self._place, T.int32(lanes), [self._first + b])
            with T.vectorized(0, lanes) as v:
                T.buffer_store(self._wanted, T.int8(0), [self._first + b, v])
        with T.serial(0, self.filled) as k:
            position = self.filled - 1 - k
            block, lane = self._split(position)
            T.buffer_store(self._wanted, T.int8(1), [block, lane])
            T.buffer_store(self._place, position, [block])

    def channel(self, position):
        """The channel of a lane."""
        return self._items[self._n, self._start + position]

    def row_buffer(self, rows: int) -> Buffer:
        """A buffer (rows, 2 * lanes) for `gather`; the first half of a row is what counts."""
        return T.alloc_buffer((rows, 2 * self.lanes), "float32")

    @contextmanager
    def gather(self) -> Iterator[tuple]:
        """Emit the loop over blocks; yields a block and what copies its wanted lanes to a row.

        ``copy(rows, row, source)`` is to be called for each row of a `row_buffer`, where
        ``source(lanes)`` is a row of the block.
        """
        lanes = self.lanes
        with T.serial(0, self._blocks) as b:
            block = self._first + b
            every = T.ramp(T.int32(0), 1, lanes)
            wanted = self._wanted[block, every] != tirx.Broadcast(T.int8(0), lanes)
            place = self._place[block]

            def copy(rows: Buffer, row, source: Callable) -> None:
                # The last operand fills what is left; LLVM 22 aborts on a constant without AVX-512.
                front = tirx.call_llvm_pure_intrin(
                    f"float32x{lanes}",
                    "llvm.experimental.vector.compress",
                    source(every),
                    wanted,
                    source(every),
                )
                T.buffer_store(rows, front, [row, T.ramp(place, 1, lanes)])

            yield block, copy

    def scatter(self, values: Buffer, places: Sequence[tuple], store: Callable) -> None:
        """Emit ``store(value, channel, block, lane, row, column)`` for each channel and place.

        `values` (places, lanes) is in memory, as the lanes are gone through one by one.
        """
        with T.serial(0, self.filled) as k:
            block, lane = self._split(k)
            for i, (row, column) in enumerate(places):
                store(values[i, k], self.channel(k), block, lane, row, column)

    def _split(self, position) -> tuple:
        channel = self.channel(position)
        return tirx.floordiv(channel, self.lanes), tirx.floormod(channel, self.lanes)
