# SPDX-License-Identifier: Apache-2.0
"""Direct convolution: accumulators stay in registers while the loop walks open input channels.

For one tile of pixels and one vector of output channels the loop runs over the *open* input
channels and the window, so the time is proportional to open_in * open_out. Any kernel size, stride,
dilation, padding and channel count.
"""

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.conv2d_builder import LINE, ask_for
from tvm_dynprune.kernels.direct_sums import Sums
from tvm_dynprune.kernels.feature_map import zero_halo
from tvm_dynprune.kernels.gathered_sums import GatheredSums
from tvm_dynprune.kernels.reduction import Step
from tvm_dynprune.kernels.tiling import SPARE_REGISTERS, Part, Tile

_MOST_VECTORS = 8  # computed together: as many streams of weights as hardware follows
_FEW_BLOCKS = 16  # whose open ones may not keep all threads busy
_MOST_PARTS = 2
_NEAR_BYTES, _PART_BYTES = 256 * 1024, 112 * 1024  # of a second level, and of it for the input


def direct_weight_shape(spec: Conv2d) -> tuple[int, ...]:
    """Shape of the packed weights."""
    x, y = spec.x, spec.y
    if spec.visit == "gather":
        return (x.channels, y.blocks, *spec.kernel, y.lanes)
    return (y.blocks, *spec.reduction.weight_shape, y.lanes)


def pack_direct_weight(weight: np.ndarray, spec: Conv2d) -> np.ndarray:
    """Weights (C_out, C_in, KH, KW) float32 in the order in which the kernel reads them."""
    c_out, c_in, kh, kw = weight.shape
    lanes = spec.y.lanes
    padded = np.zeros((spec.y.blocks * lanes, c_in, kh, kw), "float32")
    padded[:c_out] = weight
    blocked = padded.reshape(spec.y.blocks, lanes, c_in, kh, kw)
    if spec.visit == "gather":
        return np.ascontiguousarray(blocked.transpose(2, 0, 3, 4, 1))
    return np.ascontiguousarray(np.moveaxis(spec.reduction.pack(blocked), 1, -1))


def direct_conv2d(spec: Conv2d) -> tirx.PrimFunc:
    """Build the kernel; its parameters are those of `Conv2dBuilder`, the input is x."""
    return DirectBuilder(spec).build()


class DirectBuilder(GatheredSums):
    """A builder of direct convolutions."""

    def declare_input(self) -> None:
        """Declare x and weight."""
        self.x = self.spec.x.argument("x")
        self.weight = T.arg("weight", T.buffer(direct_weight_shape(self.spec), "float32"))

    @property
    def vectors(self) -> int:
        """Output blocks that are computed together: few pixels alone leave registers idle."""
        spec = self.spec
        if spec.visit not in ("all", "blocks"):
            return 2 if spec.pairs else 1
        pixels = spec.y.height * spec.y.width
        weights = spec.x.lanes if self._by_vector else 1
        most = (spec.registers - SPARE_REGISTERS) // (pixels + weights)
        return spec.together(max(2 if spec.pairs else 1, min(most, _MOST_VECTORS)))

    @property
    def by_part(self) -> bool:
        """A large input of a 1x1 kernel is fetched from a far cache once then, not for each pair.

        What its weights are is fetched for each part.
        """
        spec = self.spec
        c_in, c_out = spec.x.channels // spec.groups, spec.y.channels
        if spec.run is not None:
            return False
        is_large = spec.x.sample_bytes > _NEAR_BYTES and 4 * c_in * c_out <= _NEAR_BYTES
        return is_large and spec.kernel == (1, 1) and spec.visit in ("all", "blocks")

    @property
    def parts(self) -> int:
        """Parts of a plane that threads can compute apart."""
        rows = sum(tile.row_count for tile in self.tiles)
        if self.by_part:
            return min(rows, -(-self.spec.x.sample_bytes // _PART_BYTES))
        usual = 2 if self.spec.pairs else 1
        few = self.spec.y.blocks <= _FEW_BLOCKS * usual and self.vectors == usual
        return min(_MOST_PARTS, rows) if few else 1

    def some_blocks(self, n, blocks: list, following: list, part: Part) -> None:
        """Emit some vectors of neighbouring output channels, a part of the pixels."""
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

        def ask(block, place: tuple, line) -> None:
            ask_for(self.weight, (block, *place, line * LINE))

        sums = Sums(blocks, following, weight, start, finish, ask if self.prefetches else None)
        with self.summed(blocks, part):
            self.sum_pixels(n, part, sums)
        with part.first():
            for block in blocks:
                self.zero_halo(n, block)

    def zero_halo(self, n, block) -> None:
        """Emit the halo of a block."""
        zero_halo(self.y, self.spec.y, n, block)
