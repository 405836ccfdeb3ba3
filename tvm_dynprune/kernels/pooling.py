# SPDX-License-Identifier: Apache-2.0
"""Global average pooling inside the kernel that computes what is pooled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.registers import registers
from tvm_dynprune.kernels.tiling import Part


def means_of(y: FeatureMap) -> FeatureMap:
    """The layout of the means of `y`."""
    return replace(y, height=1, width=1, halo=0)


class Pooling:
    """The kernel's next parameter, pool (N, blocks, 1, 1, lanes), and the sums that lead there.

    Each of the `parts` of a plane, which threads compute apart, has sums of its own. Where y is an
    operand of a concatenation, pool is that one's.
    """

    def __init__(self, y: FeatureMap, parts: int) -> None:
        self.y, self.parts = y, parts
        self._means = means_of(y)
        self._whole = self._means.argument("pool")

    def begin(self) -> None:
        """Emit what comes before the first sum, after the last parameter."""
        self.pool = self._means.part_of(self._whole)
        self._partial = T.alloc_buffer((self.y.blocks * self.parts, self.y.lanes), "float32")

    @contextmanager
    def sums(self, blocks: list, part: Part) -> Iterator[None]:
        """What is added meanwhile is of a part of these blocks."""
        self._start(len(blocks))
        yield
        for one, block in zip(self._acc, blocks, strict=True):
            with T.vectorized(0, self.y.lanes) as v:
                T.buffer_store(self._partial, one[v], [block * self.parts + part.index, v])

    @contextmanager
    def mean(self, n, block) -> Iterator[None]:
        """What is added meanwhile is all of a block."""
        self._start(1)
        yield
        self.write(n, block, lambda v: self._acc[0][v])

    def add(self, value, lane, number: int = 0) -> None:
        """Emit the addition of one element of the block of that number."""
        acc = self._acc[number]
        T.buffer_store(acc, acc[lane] + value, [lane])

    def finish(self, n, block) -> None:
        """Emit the mean of a block whose parts have been summed."""
        first = block * self.parts

        def total(v):
            value = self._partial[first, v]
            for part in range(1, self.parts):
                value = value + self._partial[first + part, v]
            return value

        self.write(n, block, total)

    def write(self, n, block, total: Callable[[Any], Any]) -> None:
        """Emit the mean of a block of which `total(lane)` is the sum."""
        factor = T.float32(1.0 / (self.y.height * self.y.width))
        with T.vectorized(0, self.y.lanes) as v:
            T.buffer_store(self.pool, total(v) * factor, [n, block, 0, 0, v])

    def copy(self, means: Buffer, n, block) -> None:
        """Emit the copy of a block's mean."""
        with T.vectorized(0, self.y.lanes) as v:
            at = [n, block, 0, 0, v]
            T.buffer_store(self.pool, means[tuple(at)], at)

    def _start(self, count: int) -> None:
        self._acc = registers(count, lanes=self.y.lanes)
        for one in self._acc:
            with T.vectorized(0, self.y.lanes) as v:
                T.buffer_store(one, T.float32(0), [v])
