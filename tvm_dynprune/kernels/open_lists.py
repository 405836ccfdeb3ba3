# SPDX-License-Identifier: Apache-2.0
"""Turn a gate's decision into the lists that the other kernels walk."""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T


def open_lists(batch: int, channels: int, lanes: int) -> tirx.PrimFunc:
    """Kernel of the lists of open channels and open blocks.

    Its parameters: open (N, C) bool; channels (N, C) int32, a permutation with the open channels
    first, both parts ascending; blocks (N, ceil(C / lanes)) int32, likewise, a block being open if
    any of its channels is; count (N, 2) int32, how many channels and blocks are open.
    """
    blocks = -(-channels // lanes)
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            is_open = T.arg("open", T.buffer((batch, channels), "bool"))
            channel_list = T.arg("channels", T.buffer((batch, channels), "int32"))
            block_list = T.arg("blocks", T.buffer((batch, blocks), "int32"))
            count = T.arg("count", T.buffer((batch, 2), "int32"))
            # any_open outlives the loop in which a block's channels are read
            any_open = T.alloc_buffer((blocks,), "bool")
            with T.serial(0, batch) as n:
                _any_open(any_open, is_open, n, channels, lanes)
                _partition(channel_list, count, 0, n, channels, lambda c: is_open[n, c])
                _partition(block_list, count, 1, n, blocks, lambda b: any_open[b])
    return builder.get()


def _any_open(any_open, is_open, n, channels: int, lanes: int) -> None:
    with T.serial(0, -(-channels // lanes)) as b:
        T.buffer_store(any_open, tirx.const(False, "bool"), [b])
    with T.serial(0, channels) as c:
        b = tirx.floordiv(c, lanes)
        T.buffer_store(any_open, tirx.any(any_open[b], is_open[n, c]), [b])


def _partition(items, count, column: int, n, length: int, keep) -> None:
    """Write 0..length-1 into `items`, those to keep first, and how many those are."""
    end = T.alloc_buffer((1,), "int32", scope="local")
    T.buffer_store(end, T.int32(0), [0])
    for wanted in (True, False):
        with T.serial(0, length) as i, T.If(keep(i) if wanted else tirx.Not(keep(i))), T.Then():
            T.buffer_store(items, i, [n, end[0]])
            T.buffer_store(end, end[0] + 1, [0])
        if wanted:
            T.buffer_store(count, end[0], [n, column])
