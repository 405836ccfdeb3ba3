# SPDX-License-Identifier: Apache-2.0
"""A direct convolution with the depthwise convolution or pooling that reads it, in one kernel.

As soon as the convolution's rows for one row of the window's result are there, that row is
computed. So the convolution's result is never in memory: of each vector of channels there is a ring
of a few rows, which the nearest cache holds.
"""

from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.direct_conv2d import DirectBuilder
from tvm_dynprune.kernels.feature_map import zero_halo
from tvm_dynprune.kernels.tiling import Part
from tvm_dynprune.kernels.window import Source, Strip, Window, WindowRows

_MOST_PARTS = 2


@dataclass(frozen=True)
class Conv2dWindow:
    """``y = window(conv2d(x))``: `conv2d.y` is `window.x`, and nobody else reads it.

    Without residual; all blocks of channels, or those of a list that both go by.
    """

    conv2d: Conv2d
    window: Window

    @property
    def by_row(self) -> Conv2d:
        """The convolution of which y is one row; its weights are packed for this."""
        return replace(self.conv2d, y=replace(self.window.x, height=1))

    @property
    def reach(self) -> int:
        """Rows that a window reads, and those between them."""
        return (self.window.kernel[0] - 1) * self.window.dilation[0] + 1

    @property
    def ring(self) -> int:
        """Rows of the convolution's result that are held: a power of two."""
        return 1 << (self.reach - 1).bit_length()


def conv2d_window(spec: Conv2dWindow) -> tirx.PrimFunc:
    """Build the kernel.

    Its parameters are those of `Conv2dBuilder` up to list_out and count_out, then those of `window`
    from weight on, without lists.
    """
    return _Builder(spec).build()


class _Builder(DirectBuilder):
    """A builder whose y is one row."""

    prefetches = False  # what is needed again for the next row is near

    def __init__(self, spec: Conv2dWindow) -> None:
        super().__init__(spec.by_row)
        self.fused, self.window = spec, WindowRows(spec.window)

    @property
    def parts(self) -> int:
        return min(_MOST_PARTS, self.fused.window.y.height)

    @property
    def by_part(self) -> bool:
        return True

    def declare_result(self) -> None:
        self.window.declare_values("window_")
        self.window.declare_result(self.parts)

    def sample(self, n) -> None:
        self.blocks(n)
        window = self.fused.window
        if window.pools:
            with T.serial(0, self.block_count(n)) as position:
                self.window.pooling.finish(n, self.block_at(n, position))
        if window.listed:
            self.window.close(n, self.list_out, self.count_out)

    def some_blocks(self, n, blocks: list, following: list, part: Part) -> None:
        y = self.spec.y
        shape = (len(blocks), self.fused.ring, y.width + 2 * y.halo, y.lanes)
        self.y = T.alloc_buffer(shape, "float32")
        self._zero_columns()
        with self.window.summed(blocks, part):
            self._rows(n, blocks, following, part)
        with part.first():
            for block in blocks:
                zero_halo(self.window.y, self.fused.window.y, n, block)

    def _rows(self, n, blocks: list, following: list, part: Part) -> None:
        """The rows of a part of the result, each after the rows of the convolution that it needs.

        The first of the part needs more than the others: earlier turns compute these only.
        """
        window = self.fused.window
        stride, pad, height = window.stride[0], window.pad[0], window.y.height
        early = -(-(self.fused.reach - stride) // stride)
        start, end = ((part.index + k) * height // part.count for k in (0, 1))
        with T.serial(start, end + early) as turn:
            first = (turn - early) * stride - pad + self.fused.reach - stride
            with T.serial(0, stride) as i:
                self._row(n, blocks, following, first + i)
            with T.If(turn >= start + early), T.Then():
                self._window_row(n, blocks, Strip(turn - early, 1))

    def _window_row(self, n, blocks: list, row: Strip) -> None:
        def compute(block, k, number: int = 0) -> None:
            self.window.compute(n, block, Source(self.y, (k,), self._slot), row, number)

        if self.fused.window.pools or len(blocks) == 1:
            for k, block in enumerate(blocks):
                compute(block, k, k)
            return
        # In a loop, which is sooner compiled than as many copies.
        with T.serial(0, len(blocks)) as k:
            block = blocks[-1]
            for number, other in enumerate(blocks[:-1]):
                block = tirx.Select(k == number, other, block)
            compute(block, k)

    def _row(self, n, blocks: list, following: list, row) -> None:
        """A row of the convolution, zeros where it is none of the plane's."""
        x = self.fused.window.x
        with T.If(tirx.all(row >= 0, row < x.height)):
            with T.Then():
                self.first_row = row
                super().some_blocks(n, blocks, following, Part())
            with T.Else(), T.grid(len(blocks), x.width) as (k, column):
                with T.vectorized(0, self.lanes) as v:
                    at = [k, self._slot(row), column + x.halo, v]
                    T.buffer_store(self.y, T.float32(0), at)

    def _zero_columns(self) -> None:
        """Emit the halo, left and right."""
        halo, (vectors, ring, columns, _) = self.spec.y.halo, self.y.shape
        for left in (0, columns - halo)[: 2 if halo else 0]:
            with T.grid(vectors, ring, halo) as (k, r, c), T.vectorized(0, self.lanes) as v:
                T.buffer_store(self.y, T.float32(0), [k, r, left + c, v])

    def _slot(self, row):
        """Where in the ring a row is; the padding's are numbered from below 0."""
        return tirx.floormod(row, self.fused.ring)

    def zero_halo(self, _n, _block) -> None:
        """Nothing: `_zero_columns` has done it."""

    def pixel(self, _n, _block, _row, column, number: int) -> tuple:
        return number, self._slot(self.first_row), column + self.spec.y.halo
