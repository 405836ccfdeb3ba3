# SPDX-License-Identifier: Apache-2.0
"""What the convolution kernels share: parameters, the visit of output channels, and the epilogue.

`direct_conv2d` and `winograd_conv2d` differ in how they compute a vector of output channels.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.activation import Factor
from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.feature_map import zero_halo
from tvm_dynprune.kernels.gather import GatheredVectors
from tvm_dynprune.kernels.open_list import list_arguments
from tvm_dynprune.kernels.pooling import Pooling, means_of
from tvm_dynprune.kernels.tiling import Part, by_run, parallel

LINE = 16  # floats of a cache line


def ask_for(buffer: Buffer, at: tuple) -> None:
    """Prefetch the cache line of an element into the second level, where there is room to wait."""
    address = T.address_of(buffer[at])
    T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 2, 1))


class Conv2dBuilder:
    """The parts of a convolution kernel that do not depend on how it convolves.

    The kernel's parameters, in order, those in brackets as the spec says: input, weight, [bias
    (blocks * lanes,)], [factors (factors, blocks * lanes)], [scale (N, C_out, 1, 1)], [residual;
    its pool, if `in_place` and `pools`], [list_in (N, C_in or blocks) int32, count_in (N,) int32],
    [list_out (N, blocks or C_out) int32, count_out (N,) int32], y, [group int64], [pool
    (N, blocks, 1, 1, lanes)]. The lists are those of `open_list`.
    """

    def __init__(self, spec: Conv2d) -> None:
        self.spec = spec
        self.lanes = spec.y.lanes

    def build(self) -> tirx.PrimFunc:
        """Build the kernel."""
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_attr({"tirx.noalias": True})
                self.declare_input()
                self._declare()
                with T.serial(0, self.spec.y.batch) as n:
                    self.sample(n)
        return builder.get()

    def declare_input(self) -> None:
        """Declare the parameters input and weight."""
        raise NotImplementedError

    @property
    def parts(self) -> int:
        """Parts of a plane that threads can compute apart."""
        return 1

    @property
    def by_part(self) -> bool:
        """Whether all output channels of a part of the plane come before those of the next."""
        return False

    @property
    def vectors(self) -> int:
        """Output blocks that are computed together."""
        return 1

    def some_blocks(self, n, blocks: list, following: list, part: Part) -> None:
        """Emit some vectors of neighbouring output channels, a part of the pixels.

        `following` are the blocks that are next, or the last ones if there are none.
        """
        raise NotImplementedError

    def gathered(self, n) -> None:
        """Emit the output channels that a list names, by vectors put together from them."""
        raise NotImplementedError

    def _declare(self) -> None:
        spec, y = self.spec, self.spec.y
        if spec.bias:
            self.bias = T.arg("bias", T.buffer((y.blocks * self.lanes,), "float32"))
        self.declare_factors()
        if spec.scale:
            self.scale = T.arg("scale", T.buffer((y.batch, y.channels, 1, 1), "float32"))
        if spec.residual is not None and not spec.in_place:
            self.residual = spec.residual.argument("residual")
        if spec.pools and spec.in_place:
            self.residual_pool = means_of(y).argument("residual_pool")
        if spec.open_in:
            length = spec.reduction.list_length
            self.list_in, self.count_in = list_arguments("in", y.batch, length)
        if spec.visit in ("blocks", "gather"):
            length = y.blocks if spec.visit == "blocks" else y.channels
            self.list_out, self.count_out = list_arguments("out", y.batch, length)
        self.declare_result()

    def declare_result(self) -> None:
        """Declare the parameters from y on."""
        spec, y = self.spec, self.spec.y
        whole = y.argument("y")
        if spec.visit == "group":
            self.group = T.cast(T.arg("group", T.int64()), "int32")
        if spec.pools:
            self.pooling = Pooling(y, self.parts)
        self.y = y.part_of(whole)
        if spec.in_place:
            self.residual = self.y
        if spec.pools:
            self.pooling.begin()

    def declare_factors(self) -> None:
        """Declare the parameter factors, if there are any."""
        shape = self.spec.factors, self.spec.y.blocks * self.lanes
        if self.spec.factors:
            self.factors = T.arg("factors", T.buffer(shape, "float32"))

    def sample(self, n) -> None:
        """Emit the visit of one sample's output channels."""
        spec, y = self.spec, self.spec.y
        if spec.visit == "gather":
            self._sample_gather(n)
        elif spec.visit == "group":
            with T.serial(0, spec.group_blocks) as b:
                block = self.group * spec.group_blocks + b
                self.some_blocks(n, [block], [block], Part())
        else:
            self.blocks(n)
        if spec.visit == "blocks" and spec.fill:
            with T.parallel(self.count_out[n], y.blocks) as position:
                self.fill_block(n, self.list_out[n, position])
        if spec.pools:
            self._pool(n)

    def blocks(self, n) -> None:
        """Emit the visit of all blocks, or of those of a list."""
        runs = self.runs(n)  # in one loop, so that threads get equal shares
        with parallel(sum(r[1] for r in runs), self.parts, by_part=self.by_part) as (i, part):
            for number, position in by_run(i, runs):
                self.some_blocks(n, *self.neighbours(n, position, runs[number][2]), part)

    def runs(self, n) -> list[tuple]:
        """(first position, times, vectors at a time) of the blocks: several at a time, the rest."""
        vectors, count = self.vectors, self.block_count(n)
        whole = count // vectors
        runs = [(0, whole, vectors)]
        if isinstance(count, int) and count % vectors:
            runs.append((whole * vectors, 1, count % vectors))
        elif not isinstance(count, int) and vectors > 1:
            runs.append((whole * vectors, count - whole * vectors, 1))
        return runs

    def neighbours(self, n, position, vectors: int) -> tuple[list, list]:
        """`vectors` blocks from a position of the list on, and as many that follow them."""
        last = self.block_count(n) - 1
        positions = [position + k for k in range(vectors)]
        following = [tirx.min(place + vectors, last) for place in positions]
        blocks, then = ([self.block_at(n, p) for p in some] for some in (positions, following))
        return blocks, then

    def summed(self, blocks: list, part: Part) -> AbstractContextManager[None]:
        """What `store` stores of these blocks meanwhile is summed, where the spec `pools`."""
        return self.pooling.sums(blocks, part) if self.spec.pools else nullcontext()

    def _pool(self, n) -> None:
        """Emit the means of all blocks; those that are filled have theirs."""
        with T.serial(0, self.block_count(n)) as position:
            self.pooling.finish(n, self.block_at(n, position))
        if self.spec.visit == "blocks" and not self.spec.fill:
            with T.serial(self.count_out[n], self.spec.y.blocks) as position:
                block = self.list_out[n, position]
                if self.spec.in_place:
                    self.pooling.copy(self.residual_pool, n, block)
                else:
                    self.pooling.write(n, block, lambda _v: T.float32(0))

    def block_count(self, n):
        """How many blocks of output channels there are to visit."""
        return self.count_out[n] if self.spec.visit == "blocks" else self.spec.y.blocks

    def items(self, n):
        """How many blocks of input channels, or channels, there are to walk."""
        return self.count_in[n] if self.spec.open_in else self.spec.reduction.list_length

    def block_at(self, n, position):
        """Which block that is."""
        return self.list_out[n, position] if self.spec.visit == "blocks" else position

    def _sample_gather(self, n) -> None:
        """What a block holds may come from several threads."""
        spec, y, count = self.spec, self.spec.y, self.count_out[n]
        with T.parallel(0, y.blocks) as block:
            zero_halo(self.y, y, n, block)
        self.gathered(n)
        if spec.fill:
            with T.parallel(count, y.channels) as position:
                channel = self.list_out[n, position]
                block, lane = tirx.floordiv(channel, self.lanes), tirx.floormod(channel, self.lanes)
                with T.grid(y.height, y.width) as (row, column):
                    value = self.closed_value(n, block, row, column, lane)
                    T.buffer_store(self.y, value, [n, block, row + y.halo, column + y.halo, lane])

    def gathered_vectors(self, n, start, vectors: int, most=None) -> GatheredVectors:
        """Emit how to find the open channels from a position on: of so many vectors, or `most`."""
        count = tirx.min(self.count_out[n] - start, vectors * self.lanes if most is None else most)
        spec, of = self.spec, (self.list_out, n, start, count, vectors)
        return GatheredVectors(*of, blocks=spec.y.blocks, lanes=self.lanes, permutes=spec.permutes)

    def vectors_at_once(self, count) -> list[tuple]:
        """(first, times, at once) of the vectors of `count` channels: several, then one if left."""
        several, together = self.vectors, self.vectors * self.lanes
        times = tirx.floordiv(count + self.lanes - 1, together)
        left = tirx.Cast("int32", times * together < count)
        runs = [(0, times, several), (times * several, left, 1)]
        return runs if several > 1 else runs[:1]

    def gathered_bias(self, vectors: GatheredVectors) -> Buffer:
        """Emit the copy of the vectors' biases; returns one row."""
        bias = vectors.row_buffer(1)
        with vectors.gather() as (block, copy):
            copy(bias, (0,), lambda every: self.bias[block * self.lanes + every])
        return bias

    def scatter(
        self, n, vectors: GatheredVectors, number, values: Buffer, places: Sequence[tuple]
    ) -> None:
        """Emit the epilogue of the sums (places, lanes) of a gathered vector and write them."""
        halo = self.spec.y.halo

        def store(value, channel, block, lane, row, column) -> None:
            value = self.epilogue(
                value, n, block, lane, row, column, lambda: self.scale[n, channel, 0, 0]
            )
            T.buffer_store(self.y, value, [n, block, row + halo, column + halo, lane])

        vectors.scatter(number, values, places, store)

    def store(self, value, n, block, row, column, lane, number: int = 0) -> None:
        """Emit the epilogue of one sum and write it; `block` is a whole vector of channels.

        `number` is its position in what is `summed`.
        """
        value = self.epilogue(
            value, n, block, lane, row, column, lambda: self._scale(n, block * self.lanes + lane)
        )
        at = [*self.pixel(n, block, row, column, number), lane]
        T.buffer_store(self.y, value, at)
        if self.spec.pools:
            self.pooling.add(self.y[tuple(at)], lane, number)

    def pixel(self, n, block, row, column, _number: int) -> tuple:
        """Where in y a pixel of a block is."""
        return n, block, row + self.spec.y.halo, column + self.spec.y.halo

    def _scale(self, n, channel):
        """The gate's value; a padded lane reads the last channel's, and nobody reads the lane."""
        y = self.spec.y
        if y.channels % self.lanes:
            channel = tirx.min(channel, y.channels - 1)
        return self.scale[n, channel, 0, 0]

    def epilogue(self, value, n, block, lane, row, column, scale):
        """The value that is written for a sum of products and bias; `scale()` reads the gate."""
        spec = self.spec
        if spec.before:
            value = spec.before(value, self._factor(block, lane))
        if spec.scale:
            value = value * scale()
        if spec.residual is not None:
            halo = spec.residual.halo
            value = value + self.residual[n, block, row + halo, column + halo, lane]
        return spec.after(value, self._factor(block, lane)) if spec.after else value

    def _factor(self, block, lane) -> Factor:
        return lambda row: self.factors[row, block * self.lanes + lane]

    def fill_block(self, n, block) -> None:
        """Emit what a closed block holds for readers who read all channels."""
        y, pools = self.spec.y, self.spec.pools
        with self.pooling.mean(n, block) if pools else nullcontext():
            with T.grid(y.height, y.width) as (row, column), T.vectorized(0, self.lanes) as v:
                at = [n, block, row + y.halo, column + y.halo, v]
                T.buffer_store(self.y, self.closed_value(n, block, row, column, v), at)
                if pools:
                    self.pooling.add(self.y[tuple(at)], v)
        zero_halo(self.y, y, n, block)

    def closed_value(self, n, block, row, column, lane):
        """What one element of a closed channel holds."""
        spec = self.spec
        if spec.residual is None:
            return T.float32(0)
        halo = spec.residual.halo
        value = self.residual[n, block, row + halo, column + halo, lane]
        return spec.after(value, self._factor(block, lane)) if spec.after else value
