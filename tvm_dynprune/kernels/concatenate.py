# SPDX-License-Identifier: Apache-2.0
"""Put what gates decided into one tensor."""

from collections.abc import Sequence

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T


def concatenate(batch: int, channels: Sequence[int]) -> tirx.PrimFunc:
    """Kernel that puts tensors (N, C_i) bool side by side into one (N, sum of C_i) bool.

    TVM's own looks for the tensor that an element is from at every element.
    """
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            parts = [
                T.arg(f"part{i}", T.buffer((batch, c), "bool")) for i, c in enumerate(channels)
            ]
            whole = T.arg("whole", T.buffer((batch, sum(channels)), "bool"))
            with T.serial(0, batch) as n:
                start = 0
                for part, size in zip(parts, channels, strict=True):
                    with T.serial(0, size) as c:
                        T.buffer_store(whole, part[n, c], [n, start + c])
                    start += size
    return builder.get()
