# SPDX-License-Identifier: Apache-2.0
"""Group normalisation (Wu, He: arXiv 1803.08494); with a channel a group, instance normalisation.

``y = after(before((x - mean) / sqrt(variance + epsilon) * gamma + beta) + residual)``, mean and
variance over the pixels and channels of a group. Blocks that hold whole groups are normalised one
after the other, while they are in a cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import lcm

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.activation import Activation, Formula, factor_rows
from tvm_dynprune.kernels.feature_map import FeatureMap, zero_halo
from tvm_dynprune.kernels.global_average import sum_of_plane
from tvm_dynprune.kernels.registers import registers


@dataclass(frozen=True)
class GroupNorm:
    """What one kernel computes; `x`, `y` and `residual` are of one size."""

    x: FeatureMap
    y: FeatureMap
    groups: int
    epsilon: float
    before: Activation | Formula | None = None
    residual: FeatureMap | None = None
    after: Activation | Formula | None = None

    @property
    def factors(self) -> int:
        """Rows of numbers for each channel that the activations read."""
        return factor_rows(self.before) + factor_rows(self.after)


def group_norm(spec: GroupNorm) -> tirx.PrimFunc:
    """Build the kernel.

    Its parameters, those in brackets as `spec` says: x, gamma and beta (blocks * lanes,), [factors
    (factors, blocks * lanes)], [residual], y.
    """
    return _Builder(spec).build()


class _Builder:
    def __init__(self, spec: GroupNorm) -> None:
        self.spec = spec
        self.lanes = spec.y.lanes
        self.size = spec.y.channels // spec.groups  # of a group, in channels
        self.unit = lcm(self.size, self.lanes)  # channels that hold whole groups and whole blocks

    def build(self) -> tirx.PrimFunc:
        y, blocks = self.spec.y, self.unit // self.lanes
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_attr({"tirx.noalias": True})
                self._declare()
                with T.serial(0, y.batch) as n, T.parallel(0, -(-y.blocks // blocks)) as unit:
                    self._unit(n, unit * blocks, tirx.min(blocks, y.blocks - unit * blocks))
        return builder.get()

    def _declare(self) -> None:
        spec, channels = self.spec, self.spec.y.blocks * self.lanes
        self.x = spec.x.argument("x")
        self.gamma = T.arg("gamma", T.buffer((channels,), "float32"))
        self.beta = T.arg("beta", T.buffer((channels,), "float32"))
        if spec.factors:
            self.factors = T.arg("factors", T.buffer((spec.factors, channels), "float32"))
        if spec.residual is not None:
            self.residual = spec.residual.argument("residual")
        self.y = spec.y.part_of(spec.y.argument("y"))

    def _unit(self, n, first, blocks) -> None:
        """Emit some blocks from `first` on, in which groups begin and end."""
        mean = T.alloc_buffer((self.unit,), "float32")
        scale = T.alloc_buffer((self.unit,), "float32")
        self._reduce(n, first, blocks, mean, lambda x, _at: x, lambda value: value)
        self._reduce(
            n,
            first,
            blocks,
            scale,
            lambda x, at: (x - mean[at]) * (x - mean[at]),
            lambda value: T.float32(1) / T.sqrt(value + T.float32(self.spec.epsilon)),
        )
        with T.serial(0, blocks) as b:
            self._write(n, first, b, mean, scale)

    def _reduce(self, n, first, blocks, result: Buffer, term: Callable, of_mean: Callable) -> None:
        """Emit, for each channel, ``of_mean`` of its group's mean of ``term(x, channel)``."""
        y, lanes, size = self.spec.y, self.lanes, self.size
        sums = T.alloc_buffer((self.unit,), "float32")
        with T.serial(0, blocks) as b:
            total = sum_of_plane(
                y, lambda row, column, v: term(self._x(n, first + b, row, column, v), b * lanes + v)
            )
            with T.vectorized(0, lanes) as v:
                T.buffer_store(sums, total(v), [b * lanes + v])
        inside = tirx.min(self.unit, y.channels - first * lanes)
        with T.serial(0, tirx.floordiv(inside, size)) as group:
            (total,) = registers(1, lanes=1)
            T.buffer_store(total, T.float32(0), [0])
            with T.serial(0, size) as c:
                T.buffer_store(total, total[0] + sums[group * size + c], [0])
            T.buffer_store(total, of_mean(total[0] / T.float32(size * y.height * y.width)), [0])
            with T.serial(0, size) as c:
                T.buffer_store(result, total[0], [group * size + c])

    def _write(self, n, first, b, mean: Buffer, scale: Buffer) -> None:
        spec, y, lanes = self.spec, self.spec.y, self.lanes
        block = first + b
        with T.grid(y.height, y.width) as (row, column), T.vectorized(0, lanes) as v:
            at, channel = b * lanes + v, block * lanes + v
            value = (self._x(n, block, row, column, v) - mean[at]) * scale[at]
            value = value * self.gamma[channel] + self.beta[channel]
            if spec.before:
                value = spec.before(value, lambda k: self.factors[k, channel])
            if spec.residual is not None:
                halo = spec.residual.halo
                value = value + self.residual[n, block, row + halo, column + halo, v]
            if spec.after:
                value = spec.after(value, lambda k: self.factors[k, channel])
            T.buffer_store(self.y, value, [n, block, row + y.halo, column + y.halo, v])
        zero_halo(self.y, y, n, block)

    def _x(self, n, block, row, column, lane):
        halo = self.spec.x.halo
        return self.x[n, block, row + halo, column + halo, lane]
