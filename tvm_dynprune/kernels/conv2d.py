# SPDX-License-Identifier: Apache-2.0
"""Direct convolution that walks lists of open output and open input channels.

For one tile of pixels and one vector of output channels the accumulators stay in registers while
the loop runs over the *open* input channels only; closed output channels are never visited. So the
time is proportional to open_in * open_out. Any kernel size, stride, dilation, padding and channel
count; bias, scale (a gate that is no 0/1 mask), residual and activations inside.

Output channels are visited in one of four ways (`Conv2d.visit`):

==========  ========================================================================================
``all``     every block of `lanes` channels
``blocks``  the blocks that a list names: for group sizes that are a multiple of the lanes
``gather``  vectors put together from open channels, weights copied first: for any other group size
``group``   the blocks of one channel group, given as a scalar: the branch of a Relax ``If``
==========  ========================================================================================
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.activation import Activation
from tvm_dynprune.kernels.feature_map import FeatureMap, zero_halo
from tvm_dynprune.kernels.reduction import Reduction, Step
from tvm_dynprune.kernels.tiling import Tile, tiles


@dataclass(frozen=True)
class Conv2d:
    """What one convolution kernel computes.

    ``y = after(before(conv(x, weight) + bias) * scale + residual)``; channels outside the output
    list become ``after(residual)``, or 0 without a residual, if `fill`, and stay unwritten if not.
    """

    x: FeatureMap
    y: FeatureMap
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]  # top, left; the rest follows from the size of y
    dilation: tuple[int, int]
    bias: bool = False
    before: Activation | None = None
    scale: bool = False
    residual: FeatureMap | None = None
    after: Activation | None = None
    open_in: bool = False  # walk a list of input channels, or of blocks of them
    unit_in: int = 1  # neighbouring input channels that open together
    visit: str = "all"
    unit: int = 1  # gather: neighbouring channels that open together, a divisor of the lanes
    group_blocks: int = 1  # group: blocks per channel group
    fill: bool = False
    registers: int = 32

    @property
    def reduction(self) -> Reduction:
        """The loops over input channels and window."""
        pixels = self.y.height * self.y.width
        return Reduction(self.x, self.kernel, pixels, self.open_in, self.unit_in)


def pack_weight(weight: np.ndarray, spec: Conv2d) -> np.ndarray:
    """Weights (C_out, C_in, KH, KW) float32 in the order in which the kernel reads them."""
    c_out, c_in, kh, kw = weight.shape
    lanes = spec.y.lanes
    padded = np.zeros((spec.y.blocks * lanes, c_in, kh, kw), "float32")
    padded[:c_out] = weight
    if spec.visit == "gather":
        return np.ascontiguousarray(np.moveaxis(spec.reduction.pack(padded), 0, -1))
    blocked = padded.reshape(spec.y.blocks, lanes, c_in, kh, kw)
    return np.ascontiguousarray(np.moveaxis(spec.reduction.pack(blocked), 1, -1))


def pack_channels(values: np.ndarray, size: FeatureMap) -> np.ndarray:
    """A per-channel vector (C,) padded with zeros to whole blocks: (blocks * lanes,)."""
    return np.pad(values.astype("float32"), (0, size.blocks * size.lanes - size.channels))


def conv2d(spec: Conv2d) -> tirx.PrimFunc:
    """Build the kernel.

    Parameters of the kernel, in order, those in brackets as `spec` says: x, weight, [bias
    (blocks * lanes,)], [scale (N, C_out, 1, 1)], [residual], [list_in (N, C_in or blocks) int32,
    count_in (N, 2) int32], [list_out (N, blocks or C_out) int32, count_out (N, 2) int32], y,
    [group int64]. The lists are those of `open_lists`.
    """
    return _Builder(spec).build()


class _Builder:
    def __init__(self, spec: Conv2d) -> None:
        self.spec = spec
        self.lanes = spec.y.lanes

    def build(self) -> tirx.PrimFunc:
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_attr({"tirx.noalias": True})
                self._declare()
                with T.serial(0, self.spec.y.batch) as n:
                    self._sample(n)
        return builder.get()

    def build_closed(self) -> tirx.PrimFunc:
        spec = self.spec
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_attr({"tirx.noalias": True})
                if spec.residual is not None:
                    self.residual = spec.residual.argument("residual")
                self.y = spec.y.argument("y")
                with T.serial(0, spec.y.batch) as n, T.parallel(0, spec.y.blocks) as block:
                    self._fill_block(n, block)
        return builder.get()

    def _declare(self) -> None:
        spec, y = self.spec, self.spec.y
        padded = y.blocks * self.lanes
        inner = spec.reduction.weight_shape
        self.x = spec.x.argument("x")
        shape = (*inner, padded) if spec.visit == "gather" else (y.blocks, *inner, self.lanes)
        self.weight = T.arg("weight", T.buffer(shape, "float32"))
        if spec.bias:
            self.bias = T.arg("bias", T.buffer((padded,), "float32"))
        if spec.scale:
            self.scale = T.arg("scale", T.buffer((y.batch, y.channels, 1, 1), "float32"))
        if spec.residual is not None:
            self.residual = spec.residual.argument("residual")
        if spec.open_in:
            length = spec.reduction.list_length
            self.list_in = T.arg("list_in", T.buffer((y.batch, length), "int32"))
            self.count_in = T.arg("count_in", T.buffer((y.batch, 2), "int32"))
        if spec.visit in ("blocks", "gather"):
            length = y.blocks if spec.visit == "blocks" else y.channels
            self.list_out = T.arg("list_out", T.buffer((y.batch, length), "int32"))
            self.count_out = T.arg("count_out", T.buffer((y.batch, 2), "int32"))
        self.y = y.argument("y")
        if spec.visit == "group":
            self.group = T.cast(T.arg("group", T.int64()), "int32")

    def _sample(self, n) -> None:
        spec, y = self.spec, self.spec.y
        if spec.visit == "gather":
            self._sample_gather(n)
            return
        if spec.visit == "blocks":
            with T.parallel(0, self.count_out[n, 1]) as position:
                self._block(n, self.list_out[n, position])
            if spec.fill:
                with T.parallel(self.count_out[n, 1], y.blocks) as position:
                    self._fill_block(n, self.list_out[n, position])
        elif spec.visit == "group":
            with T.serial(0, spec.group_blocks) as b:
                self._block(n, self.group * spec.group_blocks + b)
        else:
            with T.parallel(0, y.blocks) as block:
                self._block(n, block)

    def _block(self, n, block) -> None:
        """One vector of neighbouring output channels, all pixels."""
        spec = self.spec

        def weight(step: Step, v):
            return self.weight[(block, *step.weight, v)]

        def finish(acc, t, row, column) -> None:
            with T.vectorized(0, self.lanes) as v:
                channel = block * self.lanes + v
                value = self._epilogue(
                    acc[t, v], n, block, v, row, column, lambda: self._scale(n, channel)
                )
                halo = spec.y.halo
                T.buffer_store(self.y, value, [n, block, row + halo, column + halo, v])

        def start(acc, t) -> None:
            with T.vectorized(0, self.lanes) as v:
                value = self.bias[block * self.lanes + v] if spec.bias else T.float32(0)
                T.buffer_store(acc, value, [t, v])

        self._pixels(n, weight, start, finish)
        zero_halo(self.y, spec.y, n, block)

    def _scale(self, n, channel):
        """The gate's value; a padded lane reads the last channel's, and nobody reads the lane."""
        y = self.spec.y
        if y.channels % self.lanes:
            channel = tirx.min(channel, y.channels - 1)
        return self.scale[n, channel, 0, 0]

    def _epilogue(self, value, n, block, lane, row, column, scale):
        spec = self.spec
        if spec.before:
            value = spec.before(value)
        if spec.scale:
            value = value * scale()
        if spec.residual is not None:
            halo = spec.residual.halo
            value = value + self.residual[n, block, row + halo, column + halo, lane]
        return spec.after(value) if spec.after else value

    def _pixels(self, n, weight, start, finish) -> None:
        """All pixels of one vector of output channels, a tile of accumulators at a time."""
        y = self.spec.y
        for tile in tiles(y.height, y.width, self.spec.registers):
            with T.grid(tile.row_count, tile.column_count) as (i, j):
                row = tile.row + i * tile.height
                column = tile.column + j * tile.width
                self._tile(n, tile, row, column, weight, start, finish)

    def _tile(self, n, tile: Tile, row, column, weight, start, finish) -> None:
        acc = T.alloc_buffer((tile.height * tile.width, self.lanes), "float32", scope="local")
        with T.unroll(0, tile.height * tile.width) as t:
            start(acc, t)
        with self._loops(n) as step:
            for t in range(tile.height * tile.width):
                x = self._input(n, step, row + t // tile.width, column + t % tile.width)
                with T.vectorized(0, self.lanes) as v:
                    T.buffer_store(acc, acc[t, v] + x * weight(step, v), [t, v])
        for t in range(tile.height * tile.width):
            finish(acc, t, row + t // tile.width, column + t % tile.width)

    def _loops(self, n) -> AbstractContextManager[Step]:
        if self.spec.open_in:
            return self.spec.reduction.loops(n, self.list_in, self.count_in)
        return self.spec.reduction.loops(n, None, None)

    def _input(self, n, step: Step, row, column):
        spec = self.spec
        h = row * spec.stride[0] + step.kh * spec.dilation[0] + (spec.x.halo - spec.pad[0])
        w = column * spec.stride[1] + step.kw * spec.dilation[1] + (spec.x.halo - spec.pad[1])
        return self.x[n, step.block, h, w, step.lane]

    def _fill_block(self, n, block) -> None:
        """What a closed block holds for readers who read all channels."""
        y = self.spec.y
        with T.grid(y.height, y.width) as (row, column), T.vectorized(0, self.lanes) as v:
            at = [n, block, row + y.halo, column + y.halo, v]
            T.buffer_store(self.y, self._closed_value(n, block, row, column, v), at)
        zero_halo(self.y, y, n, block)

    def _closed_value(self, n, block, row, column, lane):
        spec = self.spec
        if spec.residual is None:
            return T.float32(0)
        halo = spec.residual.halo
        value = self.residual[n, block, row + halo, column + halo, lane]
        return spec.after(value) if spec.after else value

    def _sample_gather(self, n) -> None:
        spec, y = self.spec, self.spec.y
        with T.parallel(0, y.blocks) as block:
            zero_halo(self.y, y, n, block)
        count = self.count_out[n, 0]
        with T.parallel(0, tirx.floordiv(count + self.lanes - 1, self.lanes)) as vector:
            self._gathered_vector(n, vector, count)
        if spec.fill:
            with T.parallel(count, y.channels) as position:
                channel = self.list_out[n, position]
                block, lane = tirx.floordiv(channel, self.lanes), tirx.floormod(channel, self.lanes)
                with T.grid(y.height, y.width) as (row, column):
                    value = self._closed_value(n, block, row, column, lane)
                    T.buffer_store(self.y, value, [n, block, row + y.halo, column + y.halo, lane])

    def _gathered_vector(self, n, vector, count) -> None:
        """One vector put together from open channels; the last one repeats the last channels."""
        spec, unit = self.spec, self.spec.unit
        pieces = self.lanes // unit
        first = T.alloc_buffer((pieces,), "int32", scope="local")
        with T.unroll(0, pieces) as k:
            at = tirx.min(vector * self.lanes + k * unit, count - unit)
            T.buffer_store(first, self.list_out[n, at], [k])
        packed = self._gather_weight(n, first)
        bias = T.alloc_buffer((pieces, unit), "float32", scope="local")
        if spec.bias:
            with T.unroll(0, pieces) as k, T.vectorized(0, unit) as u:
                T.buffer_store(bias, self.bias[first[k] + u], [k, u])

        def weight(step: Step, v):
            return packed[(*step.weight, v)]

        def start(acc, t) -> None:
            with T.unroll(0, pieces) as k, T.vectorized(0, unit) as u:
                T.buffer_store(acc, bias[k, u] if spec.bias else T.float32(0), [t, k * unit + u])

        def finish(acc, t, row, column) -> None:
            with T.unroll(0, pieces) as k, T.vectorized(0, unit) as u:
                block = tirx.floordiv(first[k], self.lanes)
                lane = tirx.floormod(first[k], self.lanes) + u
                channel = first[k] + u
                value = self._epilogue(
                    acc[t, k * unit + u], n, block, lane, row, column,
                    lambda: self.scale[n, channel, 0, 0],
                )  # fmt: skip
                halo = spec.y.halo
                T.buffer_store(self.y, value, [n, block, row + halo, column + halo, lane])

        self._pixels(n, weight, start, finish)

    def _gather_weight(self, n, first):
        """Copy the weights of the open input and output channels together, once per vector."""
        unit = self.spec.unit
        packed = T.alloc_buffer((*self.spec.reduction.weight_shape, self.lanes), "float32")
        with self._loops(n) as step, T.unroll(0, self.lanes // unit) as k:
            with T.vectorized(0, unit) as u:
                value = self.weight[(*step.weight, first[k] + u)]
                T.buffer_store(packed, value, [*step.weight, k * unit + u])
        return packed


def conv2d_closed(spec: Conv2d) -> tirx.PrimFunc:
    """Build the kernel of what `y` holds where everything is closed: [residual], y."""
    return _Builder(spec).build_closed()
