# SPDX-License-Identifier: Apache-2.0
"""Layer normalisation over the channels of each pixel, as ConvNeXt has it (arXiv 2201.03545).

``y = (x - mean) / sqrt(variance + epsilon) * gamma + beta``, a few pixels at a time.
"""

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.feature_map import FeatureMap, zero_halo
from tvm_dynprune.kernels.registers import registers
from tvm_dynprune.kernels.tiling import cut

_TOGETHER = 4  # pixels, whose sums do not wait for each other


@dataclass(frozen=True)
class LayerNorm:
    """What one kernel computes; `y` has the size of `x`."""

    x: FeatureMap
    y: FeatureMap
    epsilon: float


def layer_norm(spec: LayerNorm) -> tirx.PrimFunc:
    """Build the kernel: x, gamma and beta (blocks * lanes,) → y."""
    return _Builder(spec).build()


class _Builder:
    def __init__(self, spec: LayerNorm) -> None:
        self.spec = spec
        self.lanes = spec.y.lanes

    def build(self) -> tirx.PrimFunc:
        y = self.spec.y
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_attr({"tirx.noalias": True})
                self.x = self.spec.x.argument("x")
                shape = (y.blocks * y.lanes,)
                self.gamma = T.arg("gamma", T.buffer(shape, "float32"))
                self.beta = T.arg("beta", T.buffer(shape, "float32"))
                self.y = y.part_of(y.argument("y"))
                with T.serial(0, y.batch) as n:
                    with T.parallel(0, y.height) as row:
                        for start, size, count in cut(y.width, min(_TOGETHER, y.width)):
                            with T.serial(0, count) as i:
                                self._pixels(n, row, start + i * size, size)
                    with T.parallel(0, y.blocks) as block:
                        zero_halo(self.y, y, n, block)
        return builder.get()

    def _pixels(self, n, row, column, count: int) -> None:
        spec, lanes = self.spec, self.lanes
        mean, scale = registers(count, lanes=1), registers(count, lanes=1)
        self._reduce(n, row, column, mean, lambda x, _p: x)
        self._reduce(n, row, column, scale, lambda x, p: (x - mean[p][0]) * (x - mean[p][0]))
        for one in scale:
            root = T.sqrt(one[0] + T.float32(spec.epsilon))
            T.buffer_store(one, T.float32(1) / root, [0])
        with T.serial(0, spec.y.blocks) as block:
            for p in range(count):
                with T.vectorized(0, lanes) as v:
                    centred = (self._x(n, block, row, column + p, v) - mean[p][0]) * scale[p][0]
                    at = block * lanes + v
                    value = centred * self.gamma[at] + self.beta[at]
                    halo = spec.y.halo
                    T.buffer_store(self.y, value, [n, block, row + halo, column + p + halo, v])

    def _reduce(self, n, row, column, result, term) -> None:
        """Emit the means over the channels of ``term(x, pixel)``."""
        spec, lanes = self.spec, self.lanes
        sums = registers(len(result), lanes=lanes)
        for one in sums:
            with T.vectorized(0, lanes) as v:
                T.buffer_store(one, T.float32(0), [v])
        with T.serial(0, spec.y.blocks) as block:
            for p, one in enumerate(sums):
                with T.vectorized(0, lanes) as v:
                    value = term(self._x(n, block, row, column + p, v), p)
                    if spec.y.channels % lanes:  # the last block's padding holds anything
                        inside = block * lanes + v < spec.y.channels
                        value = tirx.Select(inside, value, T.float32(0))
                    T.buffer_store(one, one[v] + value, [v])
        for one, total in zip(sums, result, strict=True):
            value = one[0]
            for lane in range(1, lanes):
                value = value + one[lane]
            T.buffer_store(total, value * T.float32(1 / spec.y.channels), [0])

    def _x(self, n, block, row, column, lane):
        halo = self.spec.x.halo
        return self.x[n, block, row + halo, column + halo, lane]
