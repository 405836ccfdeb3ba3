# SPDX-License-Identifier: Apache-2.0
"""Kernels between plain NCHW and the blocked layout of FeatureMap."""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.feature_map import FeatureMap, zero_halo


def block_channels(size: FeatureMap) -> tirx.PrimFunc:
    """Kernel x (N, C, H, W) → y blocked, halo and padded lanes zero."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            plain = (size.batch, size.channels, size.height, size.width)
            x = T.arg("x", T.buffer(plain, "float32"))
            y = size.argument("y")
            with T.grid(size.batch, size.blocks) as (n, b):
                zero_halo(y, size, n, b)
                with T.grid(size.height, size.width) as (row, column):
                    with T.unroll(0, size.lanes) as v:
                        channel = b * size.lanes + v
                        value = x[n, tirx.min(channel, size.channels - 1), row, column]
                        if size.channels % size.lanes:
                            inside = channel < size.channels
                            value = tirx.if_then_else(inside, value, T.float32(0))
                        at = [n, b, row + size.halo, column + size.halo, v]
                        T.buffer_store(y, value, at)
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
