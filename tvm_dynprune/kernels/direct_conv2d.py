# SPDX-License-Identifier: Apache-2.0
"""Direct convolution: accumulators stay in registers while the loop walks open input channels.

For one tile of pixels and one vector of output channels the loop runs over the *open* input
channels and the window, so the time is proportional to open_in * open_out. Any kernel size, stride,
dilation, padding and channel count.
"""

from collections.abc import Sequence

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.conv2d_builder import LINE, ask_for
from tvm_dynprune.kernels.direct_sums import DirectSums, Sums
from tvm_dynprune.kernels.feature_map import zero_halo
from tvm_dynprune.kernels.gather import GatheredVector
from tvm_dynprune.kernels.reduction import Step
from tvm_dynprune.kernels.registers import registers
from tvm_dynprune.kernels.tiling import SPARE_REGISTERS, Part, Tile

_FEW_PIXELS, _MANY_PIXELS = 256, 1024
_MOST_VECTORS = 8  # computed together: as many streams of weights as hardware follows
_FEW_BLOCKS = 16  # whose open ones may not keep all threads busy
_MOST_PARTS = 2
_PARTS = 4  # of the open input channels, where all outputs are computed together
_AT_ONCE = 4  # input channels, likewise: the sums are loaded and stored once for them


def direct_weight_shape(spec: Conv2d) -> tuple[int, ...]:
    """Shape of the packed weights."""
    x, y = spec.x, spec.y
    if spec.input_outer:
        items = spec.reduction.list_length
        return (items, y.blocks, *spec.kernel, x.channels // items, y.lanes)
    if spec.visit == "gather":
        return (y.blocks, x.channels, *spec.kernel, y.lanes)
    return (y.blocks, *spec.reduction.weight_shape, y.lanes)


def pack_direct_weight(weight: np.ndarray, spec: Conv2d) -> np.ndarray:
    """Weights (C_out, C_in, KH, KW) float32 in the order in which the kernel reads them."""
    c_out, c_in, kh, kw = weight.shape
    lanes = spec.y.lanes
    padded = np.zeros((spec.y.blocks * lanes, c_in, kh, kw), "float32")
    padded[:c_out] = weight
    if spec.input_outer:
        items = spec.reduction.list_length
        blocked = padded.reshape(spec.y.blocks, lanes, items, c_in // items, kh, kw)
        return np.ascontiguousarray(blocked.transpose(2, 0, 4, 5, 3, 1))
    blocked = padded.reshape(spec.y.blocks, lanes, c_in, kh, kw)
    if spec.visit == "gather":
        return np.ascontiguousarray(np.moveaxis(blocked, 1, -1))
    return np.ascontiguousarray(np.moveaxis(spec.reduction.pack(blocked), 1, -1))


def prefetches(spec: Conv2d) -> bool:
    """Whether a kernel prefetches weights, unless they are quick.

    With very many pixels it has time to fetch. A core that multiplies by lane is slow enough to
    wait for those of a list only, whose gaps no hardware foresees.
    """
    pixels = spec.y.height * spec.y.width
    if spec.by_lane and (pixels > _FEW_PIXELS or not spec.open_in):
        return False
    return pixels <= _MANY_PIXELS and spec.by_input_block and spec.visit != "gather"


def direct_conv2d(spec: Conv2d) -> tirx.PrimFunc:
    """Build the kernel; its parameters are those of `Conv2dBuilder`, the input is x."""
    return _Builder(spec).build()


class _Builder(DirectSums):
    def declare_input(self) -> None:
        self.x = self.spec.x.argument("x")
        self.weight = T.arg("weight", T.buffer(direct_weight_shape(self.spec), "float32"))

    def sample(self, n) -> None:
        if self.spec.input_outer:
            self._sample_input_outer(n)
        else:
            super().sample(n)

    @property
    def vectors(self) -> int:
        """Output blocks that are computed together: few pixels alone leave registers idle."""
        spec = self.spec
        if spec.visit not in ("all", "blocks"):
            return 1
        pixels = spec.y.height * spec.y.width
        weights = spec.x.lanes if self._by_vector else 1
        most = (spec.registers - SPARE_REGISTERS) // (pixels + weights)
        return max(2 if spec.pairs else 1, min(most, _MOST_VECTORS, spec.y.blocks))

    @property
    def parts(self) -> int:
        rows = sum(tile.row_count for tile in self.tiles)
        usual = 2 if self.spec.pairs else 1
        few = self.spec.y.blocks <= _FEW_BLOCKS * usual and self.vectors == usual
        return min(_MOST_PARTS, rows) if few else 1

    def some_blocks(self, n, blocks: list, following: list, part: Part) -> None:
        spec = self.spec

        def weight(step: Step, k: int, v):
            return self.weight[(blocks[k], *step.weight, v)]

        def start(acc) -> None:
            for (k, _), one in np.ndenumerate(acc):
                with T.vectorized(0, self.lanes) as v:
                    bias = self.bias[blocks[k] * self.lanes + v] if spec.bias else T.float32(0)
                    T.buffer_store(one, bias, [v])

        def finish(acc, tile: Tile, row, column) -> None:
            for (k, t), one in np.ndenumerate(acc):
                i, j = tile.pixels[t]
                with T.vectorized(0, self.lanes) as v:
                    self.store(one[v], n, blocks[k], row + i, column + j, v, k)

        def ask(item, line, later: bool = False) -> None:
            for block in following if later else blocks:
                ask_for(self.weight, (block, item, 0, 0, 0, line * LINE))

        slow = prefetches(spec) and not spec.schedule.quick_weights
        sums = Sums(len(blocks), weight, start, finish, ask if slow else None)
        with self.summed(blocks, part):
            self.sum_pixels(n, part, sums)
        with part.first():
            for block in blocks:
                zero_halo(self.y, spec.y, n, block)

    def _sample_input_outer(self, n) -> None:
        """Threads share the open input channels, each of which adds to every output."""
        spec, y, lanes = self.spec, self.spec.y, self.lanes
        pixels, count = y.height * y.width, self.count_in[n]
        sums = T.alloc_buffer((_PARTS, y.blocks, pixels, lanes), "float32")
        with T.parallel(0, _PARTS) as part:
            with T.grid(y.blocks, pixels) as (block, t), T.vectorized(0, lanes) as v:
                T.buffer_store(sums, T.float32(0), [part, block, t, v])
            first, end = (tirx.floordiv((part + k) * count, _PARTS) for k in (0, 1))
            at_once = 1 if spec.by_input_block else _AT_ONCE
            with T.serial(0, tirx.floordiv(end - first + at_once - 1, at_once)) as chunk:
                start = first + chunk * at_once
                with T.serial(0, y.blocks) as block:
                    self._add(n, sums, (part, block), start, tirx.min(end - start, at_once))
        with T.parallel(0, y.blocks) as block:
            for t in range(pixels):
                with T.vectorized(0, lanes) as v:
                    total = self.bias[block * lanes + v] if spec.bias else T.float32(0)
                    for part in range(_PARTS):
                        total = total + sums[part, block, t, v]
                    self.store(total, n, block, t // y.width, t % y.width, v)
            zero_halo(self.y, y, n, block)

    def _add(self, n, sums, at: tuple, start, count) -> None:
        """Add the products of `count` items of the input list to all pixels of one block."""
        spec, y, lanes = self.spec, self.spec.y, self.lanes
        pixels, channels = y.height * y.width, spec.x.channels // spec.reduction.list_length
        acc = registers(pixels, lanes=lanes)
        for t in range(pixels):
            with T.vectorized(0, lanes) as v:
                T.buffer_store(acc[t], T.float32(0), [v])
        with T.serial(0, count) as k, T.grid(*spec.kernel) as (i, j), T.serial(0, channels) as c:
            item = self.list_in[n, start + k]
            channel = item * channels + c
            place = tirx.floordiv(channel, spec.x.lanes), tirx.floormod(channel, spec.x.lanes)
            for t in range(pixels):
                step = Step(*place, i, j, channel, ())
                x = self.x[self.place(n, step, t // y.width, t % y.width)]
                with T.vectorized(0, lanes) as v:
                    product = x * self.weight[item, at[1], i, j, c, v]
                    T.buffer_store(acc[t], acc[t][v] + product, [v])
        for t in range(pixels):
            with T.vectorized(0, lanes) as v:
                T.buffer_store(sums, sums[(*at, t, v)] + acc[t][v], [*at, t, v])

    def gathered(self, n, vector: GatheredVector) -> None:
        spec, lanes = self.spec, self.lanes
        rows = (spec.x.channels, *spec.kernel)
        packed = vector.row_buffer(int(np.prod(rows)))
        lists = (self.list_in, self.count_in) if spec.open_in else (None, None)
        with (
            vector.gather() as (block, copy),
            spec.reduction.channels(n, *lists) as (index, channel, later),
        ):
            with T.grid(*spec.kernel) as (i, j):
                ask_for(self.weight, (block, later, i, j, 0))
            with T.grid(*spec.kernel) as (i, j):
                row = _flat((index, i, j), rows)
                copy(packed, row, lambda every: self.weight[block, channel, i, j, every])
        bias = self.gathered_bias(vector) if spec.bias else None

        def weight(step: Step, _k: int, v):
            return packed[_flat((step.index, step.kh, step.kw), rows), v]

        def start(acc) -> None:
            for one in acc.flat:
                with T.vectorized(0, lanes) as v:
                    T.buffer_store(one, T.float32(0) if bias is None else bias[0, v], [v])

        def finish(acc, tile: Tile, row, column) -> None:
            places = [(row + i, column + j) for i, j in tile.pixels]
            values = T.alloc_buffer((len(places), lanes), "float32")
            for t, one in enumerate(acc.flat):
                with T.vectorized(0, lanes) as v:
                    T.buffer_store(values, one[v], [t, v])
            self.scatter(n, vector, values, places)

        self.sum_pixels(n, Part(), Sums(1, weight, start, finish))


def _flat(index: Sequence, shape: Sequence[int]):
    """Position in row-major order."""
    flat = index[0]
    for i, size in zip(index[1:], shape[1:], strict=True):
        flat = flat * size + i
    return flat
