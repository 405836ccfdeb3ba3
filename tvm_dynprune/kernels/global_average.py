# SPDX-License-Identifier: Apache-2.0
"""Global average pooling over all blocks, or over those that a list names; the others become 0."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.open_list import list_arguments
from tvm_dynprune.kernels.registers import registers

_SUMS = 8  # independent sums, so that the additions' latency overlaps


@dataclass(frozen=True)
class GlobalAverage:
    """``y`` (N, C, 1, 1) is the mean of ``x`` (N, C, H, W) over H and W."""

    x: FeatureMap
    listed: bool = False

    @property
    def y(self) -> FeatureMap:
        """The result's layout."""
        return FeatureMap(self.x.batch, self.x.channels, 1, 1, self.x.lanes)


def global_average(spec: GlobalAverage) -> tirx.PrimFunc:
    """Build the kernel: x, [list_out (N, blocks) int32, count_out (N,) int32], y."""
    x_map, lanes = spec.x, spec.x.lanes
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            x = x_map.argument("x")
            list_out = count_out = None
            if spec.listed:
                list_out, count_out = list_arguments("out", x_map.batch, x_map.blocks)
            y = spec.y.argument("y")
            with T.serial(0, x_map.batch) as n:
                if list_out is None or count_out is None:
                    with T.parallel(0, x_map.blocks) as block:
                        _block(x_map, x, y, n, block)
                else:
                    with T.serial(0, count_out[n]) as position:
                        _block(x_map, x, y, n, list_out[n, position])
                    with T.serial(count_out[n], x_map.blocks) as position:
                        with T.vectorized(0, lanes) as v:
                            T.buffer_store(y, T.float32(0), [n, list_out[n, position], 0, 0, v])
    return builder.get()


def _block(size: FeatureMap, x, y, n, block) -> None:
    halo = size.halo
    total = sum_of_plane(size, lambda row, column, v: x[n, block, row + halo, column + halo, v])
    with T.vectorized(0, size.lanes) as v:
        mean = total(v) * T.float32(1.0 / (size.height * size.width))
        T.buffer_store(y, mean, [n, block, 0, 0, v])


def sum_of_plane(size: FeatureMap, element: Callable) -> Callable:
    """Emit the sums of ``element(row, column, lane)``; returns what gives that of a lane."""
    sums = min(_SUMS, size.width)
    acc, rest = registers(sums, lanes=size.lanes), size.width % sums

    def add(s: int, row, column) -> None:
        with T.vectorized(0, size.lanes) as v:
            T.buffer_store(acc[s], acc[s][v] + element(row, column, v), [v])

    for s in range(sums):
        with T.vectorized(0, size.lanes) as v:
            T.buffer_store(acc[s], T.float32(0), [v])
    with T.serial(0, size.height) as row:
        with T.serial(0, size.width // sums) as step:
            for s in range(sums):
                add(s, row, step * sums + s)
        for s in range(rest):
            add(s, row, size.width - rest + s)
    return lambda v: reduce(operator.add, (one[v] for one in acc))
