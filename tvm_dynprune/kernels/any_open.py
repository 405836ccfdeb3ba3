# SPDX-License-Identifier: Apache-2.0
"""For each channel group, whether any of its channels is open for any sample of the batch."""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T


def any_open(batch: int, channels: int, group_size: int) -> tirx.PrimFunc:
    """Kernel open (N, C) bool → decided (ceil(C / group_size),) bool."""
    groups = -(-channels // group_size)
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            is_open = T.arg("open", T.buffer((batch, channels), "bool"))
            decided = T.arg("decided", T.buffer((groups,), "bool"))
            with T.serial(0, groups) as g:
                T.buffer_store(decided, tirx.const(False, "bool"), [g])
            with T.grid(batch, channels) as (n, c):
                g = tirx.floordiv(c, group_size)
                T.buffer_store(decided, tirx.any(decided[g], is_open[n, c]), [g])
    return builder.get()
