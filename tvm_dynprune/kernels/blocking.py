# SPDX-License-Identifier: Apache-2.0
"""Kernels between plain NCHW and the blocked layout of FeatureMap."""

from typing import NamedTuple

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.feature_map import FeatureMap, zero_halo


class Affine(NamedTuple):
    """(x + offset) * factor, a pair per channel: how networks normalise images."""

    offset: tuple[float, ...]
    factor: tuple[float, ...]

    def __call__(self, value, channel: int):
        """The result for an element of a channel."""
        return (value + T.float32(self.offset[channel])) * T.float32(self.factor[channel])


def block_channels(size: FeatureMap, affine: Affine | None = None) -> tirx.PrimFunc:
    """Kernel x (N, C, H, W) → y, halo and padded lanes zero; `affine` only where C fits a block."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            plain = (size.batch, size.channels, size.height, size.width)
            x = T.arg("x", T.buffer(plain, "float32"))
            y = size.argument("y")
            with T.grid(size.batch, size.blocks) as (n, b):
                zero_halo(y, size, n, b)
                with T.grid(size.height, size.width) as (row, column):
                    for v in range(size.lanes):
                        value = _element(x, size, affine, (n, b * size.lanes, v, row, column))
                        at = [n, b, row + size.halo, column + size.halo, v]
                        T.buffer_store(y, value, at)
    return builder.get()


def _element(x, size: FeatureMap, affine: Affine | None, at: tuple):
    """The element of channel `first` + `lane`; 0 past the last channel."""
    n, first, lane, row, column = at
    if size.blocks == 1 and lane >= size.channels:
        return T.float32(0)
    value = x[n, tirx.min(first + lane, size.channels - 1), row, column]
    if size.blocks > 1 and size.channels % size.lanes:
        value = tirx.if_then_else(first + lane < size.channels, value, T.float32(0))
    return value if affine is None else affine(value, lane)


def unblock_channels(size: FeatureMap) -> tirx.PrimFunc:
    """Kernel x blocked → y (N, C, H, W)."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            x = size.argument("x")
            plain = (size.batch, size.channels, size.height, size.width)
            y = T.arg("y", T.buffer(plain, "float32"))
            with T.grid(*plain) as (n, c, row, column):
                block, lane = tirx.floordiv(c, size.lanes), tirx.floormod(c, size.lanes)
                value = x[n, block, row + size.halo, column + size.halo, lane]
                T.buffer_store(y, value, [n, c, row, column])
    return builder.get()
