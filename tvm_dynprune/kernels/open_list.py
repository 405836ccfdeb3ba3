# SPDX-License-Identifier: Apache-2.0
"""Turn a gate's decision into a list that the other kernels walk."""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T
from tvm.tirx import Buffer


def list_arguments(side: str, batch: int, length: int) -> tuple[Buffer, Buffer]:
    """Declare the next parameters: list_`side` (N, length) and count_`side` (N,), both int32."""
    items = T.arg(f"list_{side}", T.buffer((batch, length), "int32"))
    return items, T.arg(f"count_{side}", T.buffer((batch,), "int32"))


def open_list(batch: int, channels: int, unit: int) -> tirx.PrimFunc:
    """Kernel of the list of open blocks of `unit` channels (1: of open channels).

    Its parameters: open (N, C) bool; items (N, ceil(C / unit)) int32, a permutation with the open
    blocks first, both parts ascending, a block being open if any of its channels is; count (N,)
    int32, how many are open.
    """
    length = -(-channels // unit)
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            is_open = T.arg("open", T.buffer((batch, channels), "bool"))
            items = T.arg("items", T.buffer((batch, length), "int32"))
            count = T.arg("count", T.buffer((batch,), "int32"))
            with T.serial(0, batch) as n:
                # No branches: half-open gates would mispredict every other one.
                any_open = T.alloc_buffer((length,), "int32")
                ends = T.alloc_buffer((2,), "int32")
                T.buffer_store(ends, T.int32(0), [1])
                with T.serial(0, length) as i:
                    found = T.cast(_any(is_open, n, i, channels, unit), "int32")
                    T.buffer_store(any_open, found, [i])
                    T.buffer_store(ends, ends[1] + any_open[i], [1])
                T.buffer_store(count, ends[1], [n])
                T.buffer_store(ends, T.int32(0), [0])
                with T.serial(0, length) as i:
                    # ends: where the next open and the next closed one go
                    T.buffer_store(items, i, [n, ends[1 - any_open[i]]])
                    T.buffer_store(ends, ends[1 - any_open[i]] + 1, [1 - any_open[i]])
    return builder.get()


def _any(is_open, n, block, channels: int, unit: int):
    """Whether any channel of a block is open, without a branch; past the end the last counts."""
    at = [block * unit + c for c in range(unit)]
    if channels % unit:
        at = [tirx.min(channel, channels - 1) for channel in at]
    found = is_open[n, at[0]]
    for channel in at[1:]:
        found = tirx.bitwise_or(found, is_open[n, channel])
    return found
