# SPDX-License-Identifier: Apache-2.0
"""Kernels between plain NCHW and the blocked layout of FeatureMap."""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.feature_map import FeatureMap


def block_channels(size: FeatureMap) -> tirx.PrimFunc:
    """Kernel x (N, C, H, W) → y blocked, halo and padded lanes zero."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            plain = (size.batch, size.channels, size.height, size.width)
            x = T.arg("x", T.buffer(plain, "float32"))
            y = size.argument("y")
            n_blocks, rows, columns, lanes = size.shape[1:]
            with T.grid(size.batch, n_blocks, rows, columns) as (n, b, r, c):
                with T.serial(0, lanes) as v:
                    channel, row, column = b * lanes + v, r - size.halo, c - size.halo
                    inside = tirx.all(
                        channel < size.channels,
                        0 <= row, row < size.height, 0 <= column, column < size.width,
                    )  # fmt: skip
                    value = tirx.if_then_else(inside, x[n, channel, row, column], T.float32(0))
                    T.buffer_store(y, value, [n, b, r, c, v])
    return builder.get()


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
