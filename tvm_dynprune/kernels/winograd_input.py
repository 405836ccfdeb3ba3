# SPDX-License-Identifier: Apache-2.0
"""The first kernel of a Winograd convolution: B^T d B of every tile of the open input channels."""

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.registers import registers
from tvm_dynprune.kernels.tiling import Part, parallel
from tvm_dynprune.kernels.winograd import Winograd
from tvm_dynprune.kernels.winograd_transforms import input_transform

_MOST_PARTS = 4
_WORTH_THREADS = 512  # tiles of input, a few of which take a microsecond


def winograd_input(spec: Winograd) -> tirx.PrimFunc:
    """Build the kernel x, [list of open blocks, count] → u, of `Winograd.transformed_shape`."""
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
                    with _input_loop(spec, x_map.blocks) as (block, part):
                        _transform_block(spec, x, u, n, block, part)
                else:
                    with _input_loop(spec, count_in[n]) as (position, part):
                        _transform_block(spec, x, u, n, list_in[n, position], part)
    return builder.get()


@contextmanager
def _input_loop(spec: Winograd, blocks) -> Iterator[tuple[tirx.Var, Part]]:
    """Walk `blocks` blocks of input channels, in parallel where it takes long enough."""
    if spec.conv.x.blocks * spec.tiles < _WORTH_THREADS:
        with T.serial(0, blocks) as i:
            yield i, Part()
    else:
        with parallel(blocks, min(_MOST_PARTS, spec.rows)) as at:
            yield at


def _transform_block(spec: Winograd, x, u, n, block, part: Part) -> None:
    """B^T d B of a part of the tiles of one block of channels."""
    size, points = spec.conv.x, spec.side
    top, left = (size.halo - pad for pad in spec.conv.pad)
    rows, columns = size.height + 2 * size.halo - top, size.width + 2 * size.halo - left
    for k, (row, row_count) in enumerate(_whole_and_last(spec, spec.rows, rows)):
        for column, column_count in _whole_and_last(spec, spec.columns, columns):
            # What the last tile of a row or column has past the buffer only pixels past y read.
            inside = (rows - row * spec.m, columns - column * spec.m)
            with part.share(row_count, k) as i, T.serial(0, column_count) as j:
                tile = (row + i) * spec.columns + column + j
                at_row, at_column = top + (row + i) * spec.m, left + (column + j) * spec.m
                d = registers(points, points, lanes=size.lanes)
                with T.vectorized(0, size.lanes) as v:
                    for c in range(points):
                        values = [
                            x[n, block, at_row + r, at_column + c, v]
                            if r < inside[0] and c < inside[1]
                            else T.float32(0)
                            for r in range(points)
                        ]
                        for r, value in enumerate(input_transform(values)):
                            T.buffer_store(d[r, c], value, [v])
                with T.vectorized(0, size.lanes) as v:
                    for r in range(points):
                        values = input_transform([d[r, c][v] for c in range(points)])
                        for c, value in enumerate(values):
                            at = [n, r * points + c, block * spec.tiles + tile, v]
                            T.buffer_store(u, value, at)


def _whole_and_last(spec: Winograd, tiles: int, pixels: int) -> list[tuple[int, int]]:
    """(first, count) of the tiles whose input ends within `pixels`, and of the last one if not."""
    whole = min(tiles, (pixels - spec.side + spec.m) // spec.m)
    return [part for part in ((0, whole), (whole, tiles - whole)) if part[1]]
