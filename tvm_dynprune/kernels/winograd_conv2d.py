# SPDX-License-Identifier: Apache-2.0
"""Winograd convolution F(m x m, 3 x 3) over open channels: m * m pixels for (m + 2)**2 products.

Lavin, Gray: "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308::

    Y = A^T [ sum over c of (G g_c G^T) * (B^T d_c B) ] A

Two kernels. `winograd_input` transforms the open input channels, once per layer; `winograd_conv2d`
multiplies, transforms back and runs the epilogue, for one vector of output channels after the
other. The first costs open_in, the second open_in * open_out: what gates save stays saved.
"""

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.conv2d import Conv2d, Conv2dBuilder
from tvm_dynprune.kernels.feature_map import zero_halo
from tvm_dynprune.kernels.tiling import SPARE_REGISTERS, cut, cut_evenly

_G = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}


@dataclass(frozen=True)
class Winograd:
    """A 3x3 convolution with steps of 1, by whole blocks; the side `m` (2 or 4) of its tiles."""

    conv: Conv2d
    m: int

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return -(-self.conv.y.height // self.m)

    @property
    def columns(self) -> int:
        """Tiles from left to right."""
        return -(-self.conv.y.width // self.m)

    @property
    def tiles(self) -> int:
        """Tiles of a plane."""
        return self.rows * self.columns

    @property
    def points(self) -> int:
        """Products per tile and pair of channels."""
        return (self.m + 2) ** 2

    @property
    def transformed_shape(self) -> tuple[int, int, int, int]:
        """Shape of the transformed input: N, points, blocks * tiles, lanes.

        One row more, so that the points of a tile, which are written together, do not all fall
        into the same set of the cache.
        """
        x = self.conv.x
        return (x.batch, self.points, x.blocks * self.tiles + 1, x.lanes)


def pack_winograd_weight(weight: np.ndarray, spec: Winograd) -> np.ndarray:
    """Transformed weights: (C_out, C_in, 3, 3) → (out blocks, points, in blocks, lanes, lanes)."""
    c_out, c_in, _, _ = weight.shape
    y, lanes = spec.conv.y, spec.conv.y.lanes
    g = np.array(_G[spec.m])
    padded = np.zeros((y.blocks * lanes, c_in, 3, 3))
    padded[:c_out] = weight
    transformed = np.einsum("ak,ockl,bl->aboc", g, padded, g, optimize=True)
    blocked = transformed.reshape(spec.points, y.blocks, lanes, c_in // lanes, lanes)
    return np.ascontiguousarray(blocked.transpose(1, 0, 3, 4, 2), dtype="float32")


def winograd_input(spec: Winograd) -> tirx.PrimFunc:
    """Build the kernel x, [list_in, count_in] → u, of `Winograd.transformed_shape`."""
    conv, x_map = spec.conv, spec.conv.x
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            x = x_map.argument("x")
            list_in = count_in = None
            if conv.open_in:
                list_in = T.arg("list_in", T.buffer((x_map.batch, x_map.blocks), "int32"))
                count_in = T.arg("count_in", T.buffer((x_map.batch,), "int32"))
            u = T.arg("u", T.buffer(spec.transformed_shape, "float32"))
            with T.serial(0, x_map.batch) as n:
                if list_in is None or count_in is None:
                    with T.parallel(0, x_map.blocks) as block:
                        _transform_block(spec, x, u, n, block)
                else:
                    with T.parallel(0, count_in[n]) as position:
                        _transform_block(spec, x, u, n, list_in[n, position])
    return builder.get()


def _transform_block(spec: Winograd, x, u, n, block) -> None:
    """B^T d B of every tile of one block of channels."""
    size, points = spec.conv.x, spec.m + 2
    top, left = (size.halo - pad for pad in spec.conv.pad)
    rows, columns = size.height + 2 * size.halo - top, size.width + 2 * size.halo - left
    for row, row_count in _whole_and_last(spec.rows, rows, spec.m):
        for column, column_count in _whole_and_last(spec.columns, columns, spec.m):
            # What the last tile of a row or column has past the buffer only pixels past y read.
            inside = (rows - row * spec.m, columns - column * spec.m)
            with T.grid(row_count, column_count) as (i, j):
                tile = (row + i) * spec.columns + column + j
                at_row, at_column = top + (row + i) * spec.m, left + (column + j) * spec.m
                d = T.alloc_buffer((points, points, size.lanes), "float32", scope="local")
                with T.vectorized(0, size.lanes) as v:
                    for c in range(points):
                        values = [
                            x[n, block, at_row + r, at_column + c, v]
                            if r < inside[0] and c < inside[1]
                            else T.float32(0)
                            for r in range(points)
                        ]
                        for r, value in enumerate(_input_transform(values)):
                            T.buffer_store(d, value, [r, c, v])
                with T.vectorized(0, size.lanes) as v:
                    for r in range(points):
                        values = _input_transform([d[r, c, v] for c in range(points)])
                        for c, value in enumerate(values):
                            at = [n, r * points + c, block * spec.tiles + tile, v]
                            T.buffer_store(u, value, at)


def _whole_and_last(tiles: int, pixels: int, m: int) -> list[tuple[int, int]]:
    """(first, count) of the tiles whose input ends within `pixels`, and of the last one if not."""
    whole = min(tiles, (pixels - 2) // m)
    return [part for part in ((0, whole), (whole, tiles - whole)) if part[1]]


def _input_transform(d: list) -> list:
    """B^T d for one column; common terms are written so that the compiler finds them."""
    if len(d) == 4:
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
    four, two = T.float32(4), T.float32(2)
    even, odd = d[4] - four * d[2], d[3] - four * d[1]
    near, far = d[4] - d[2], two * (d[3] - d[1])
    return [
        four * d[0] - T.float32(5) * d[2] + d[4],
        even + odd,
        even - odd,
        near + far,
        near - far,
        four * d[1] - T.float32(5) * d[3] + d[5],
    ]


def _output_transform(p: list) -> list:
    """A^T p for one column."""
    if len(p) == 4:
        return [p[0] + p[1] + p[2], p[1] - p[2] - p[3]]
    near, near_odd = p[1] + p[2], p[1] - p[2]
    far, far_odd = p[3] + p[4], p[3] - p[4]
    return [
        p[0] + near + far,
        near_odd + T.float32(2) * far_odd,
        near + T.float32(4) * far,
        near_odd + T.float32(8) * far_odd + p[5],
    ]


def winograd_conv2d(spec: Winograd) -> tirx.PrimFunc:
    """Build the kernel; its parameters are those of `Conv2dBuilder`, the input is u."""
    return _Builder(spec).build()


class _Builder(Conv2dBuilder):
    def __init__(self, spec: Winograd) -> None:
        super().__init__(spec.conv)
        self.winograd = spec

    def declare_input(self) -> None:
        spec, x, y = self.winograd, self.spec.x, self.spec.y
        self.u = T.arg("u", T.buffer(spec.transformed_shape, "float32"))
        shape = (y.blocks, spec.points, x.blocks, self.lanes, self.lanes)
        self.weight = T.arg("weight", T.buffer(shape, "float32"))

    def block(self, n, block) -> None:
        spec = self.winograd
        products = T.alloc_buffer((spec.points, spec.tiles + 1, self.lanes), "float32")
        self._multiply(products, n, block)
        self._transform_back(products, n, block)
        zero_halo(self.y, self.spec.y, n, block)

    def _multiply(self, products, n, block) -> None:
        """products[p, t, :] = sum over open input channels c of u[p, t, c] * weight[p, c, :]."""
        spec = self.winograd
        most = max(1, self.spec.registers - SPARE_REGISTERS)
        for start, size, count in cut_evenly(spec.tiles, most):
            at_once = max(k for k in range(1, spec.points + 1) if spec.points % k == 0
                          and k * size <= max(most, size))  # fmt: skip
            with T.grid(spec.points // at_once, count) as (p, piece):
                self._tile(products, n, block, p * at_once, at_once, start + piece * size, size)

    def _tile(self, products, n, block, point, at_once: int, tile, size: int) -> None:
        """`at_once` points of `size` tiles, in registers."""
        acc = T.alloc_buffer((at_once * size, self.lanes), "float32", scope="local")
        with T.unroll(0, at_once * size) as k, T.vectorized(0, self.lanes) as v:
            T.buffer_store(acc, T.float32(0), [k, v])
        blocks = self.count_in[n] if self.spec.open_in else self.spec.x.blocks
        with T.serial(0, blocks) as position:
            block_in = self.list_in[n, position] if self.spec.open_in else position
            with T.serial(0, self.lanes) as c:
                for q in range(at_once):
                    for t in range(size):
                        u = self.u[n, point + q, block_in * self.winograd.tiles + tile + t, c]
                        with T.vectorized(0, self.lanes) as v:
                            weight = self.weight[block, point + q, block_in, c, v]
                            k = q * size + t
                            T.buffer_store(acc, acc[k, v] + u * weight, [k, v])
        for q in range(at_once):
            for t in range(size):
                with T.vectorized(0, self.lanes) as v:
                    T.buffer_store(products, acc[q * size + t, v], [point + q, tile + t, v])

    def _transform_back(self, products, n, block) -> None:
        """A^T products A of every tile, and the epilogue."""
        spec, y = self.winograd, self.spec.y
        m = spec.m
        for row, height, row_count in cut(y.height, m):
            for column, width, column_count in cut(y.width, m):
                with T.grid(row_count, column_count) as (i, j):
                    tile = (row // m + i) * spec.columns + column // m + j
                    at = (row + i * m, column + j * m)
                    self._tile_back(products, n, block, tile, at, (height, width))

    def _tile_back(self, products, n, block, tile, at: tuple, size: tuple[int, int]) -> None:
        m, points = self.winograd.m, self.winograd.m + 2
        e = T.alloc_buffer((m, points, self.lanes), "float32", scope="local")
        with T.vectorized(0, self.lanes) as v:
            for c in range(points):
                column = [products[r * points + c, tile, v] for r in range(points)]
                for r, value in enumerate(_output_transform(column)):
                    T.buffer_store(e, value, [r, c, v])
        with T.vectorized(0, self.lanes) as v:
            for r in range(size[0]):
                values = _output_transform([e[r, c, v] for c in range(points)])
                for c in range(size[1]):
                    value = values[c]
                    if self.spec.bias:
                        value = value + self.bias[block * self.lanes + v]
                    self.store(value, n, block, at[0] + r, at[1] + c, v)
