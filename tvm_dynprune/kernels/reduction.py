# SPDX-License-Identifier: Apache-2.0
"""Reduction: in which order a convolution walks its open input channels and its window.

=================  =================================================================================
``blocks``         block, kh, kw, channel in the block: where channels open by whole blocks. The
                   weights of one block are one run of memory, and the innermost bound is static.
``window_outer``   kh, kw, channel: the dynamic bound inside keeps LLVM from unrolling the window,
                   which would spill the accumulators
``channel_outer``  channel, kh, kw: for planes of a few pixels, which have few accumulators and are
                   bound by reading weights; those of one channel stay together
=================  =================================================================================
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.feature_map import FeatureMap

_FEW_PIXELS = 8


class Step(NamedTuple):
    """Position in the reduction, as TIR expressions: block and lane of the channel, kh, kw."""

    block: tirx.Var
    lane: tirx.Var
    kh: tirx.Var
    kw: tirx.Var
    weight: tuple  # index into the packed weights, but for the output channel


@dataclass(frozen=True)
class Reduction:
    """The loops over input channels and window of one convolution.

    `unit` is how many neighbouring input channels open together where they are `listed`.
    """

    x: FeatureMap
    kernel: tuple[int, int]
    pixels: int
    listed: bool
    unit: int

    @property
    def order(self) -> str:
        """One of the orders above."""
        lanes = self.x.lanes
        by_block = not self.listed or self.unit % lanes == 0
        if self.x.channels % lanes == 0 and by_block:
            return "blocks"
        return "channel_outer" if self.pixels <= _FEW_PIXELS else "window_outer"

    @property
    def list_length(self) -> int:
        """Length of the list of input channels, or of blocks of them."""
        return self.x.blocks if self.order == "blocks" else self.x.channels

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the packed weights, but for the output channels."""
        (kh, kw), channels, lanes = self.kernel, self.x.channels, self.x.lanes
        return {
            "blocks": (channels // lanes, kh, kw, lanes),
            "window_outer": (kh, kw, channels),
            "channel_outer": (channels, kh, kw),
        }[self.order]

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Order the axes (..., C_in, KH, KW) of weights as `weight_shape` says."""
        if self.order == "channel_outer":
            return weight
        moved = np.moveaxis(weight, -3, -1)
        if self.order == "window_outer":
            return moved
        lanes, (kh, kw) = self.x.lanes, self.kernel
        split = moved.reshape(*weight.shape[:-3], kh, kw, -1, lanes)
        return np.moveaxis(split, -2, -4)

    @contextmanager
    def loops(
        self,
        n: tirx.Var,
        items: Buffer | None,
        count: Buffer | None,
        prefetch: Callable[[tuple], None] | None = None,
    ) -> Iterator[Step]:
        """Emit the loops for sample `n`, over the list `items` if there is one.

        `prefetch` asks for the weights at the index that it gets, those of the next block.
        """
        if self.order == "blocks":
            with self._open(n, items, count) as (block, following), T.grid(*self.kernel) as (i, j):
                if prefetch is not None:
                    prefetch((following, i, j))
                with T.serial(0, self.x.lanes) as lane:
                    yield Step(block, lane, i, j, (block, i, j, lane))
        elif self.order == "window_outer":
            with T.grid(*self.kernel) as (i, j), self._open(n, items, count) as (c, _):
                yield Step(*self._split(c), i, j, (i, j, c))
        else:
            with self._open(n, items, count) as (c, _), T.grid(*self.kernel) as (i, j):
                yield Step(*self._split(c), i, j, (c, i, j))

    def _split(self, c: tirx.Var) -> tuple:
        lanes = self.x.lanes
        return tirx.floordiv(c, lanes), tirx.floormod(c, lanes)

    @contextmanager
    def _open(self, n: tirx.Var, items: Buffer | None, count: Buffer | None) -> Iterator[tuple]:
        if items is None or count is None:
            with T.serial(0, self.list_length) as position:
                yield position, tirx.min(position + 1, self.list_length - 1)
        else:
            with T.serial(0, count[n]) as position:
                yield items[n, position], items[n, tirx.min(position + 1, count[n] - 1)]
