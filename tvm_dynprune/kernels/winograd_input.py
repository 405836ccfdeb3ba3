# SPDX-License-Identifier: Apache-2.0
"""The first kernel of a Winograd convolution: B^T d B of every tile of the open input channels."""

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.open_list import list_arguments
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
                list_in, count_in = list_arguments("in", x_map.batch, x_map.blocks)
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
    for k, (row, count) in enumerate(_whole_and_last(spec, 0)):
        for column, column_count in _whole_and_last(spec, 1):
            with part.share(count, k) as i, T.serial(0, column_count) as j:
                tile = (row + i) * spec.columns + column + j
                inside = _inside(spec, (row, column))
                at = (n, block, row + i, column + j)
                _transform_tile(spec, x, at, inside, u, (n, block * spec.tiles + tile))


def transform_strip(spec: Winograd, x, u, at: tuple, rows: int, whole: int) -> None:
    """Emit B^T d B of `rows` rows of tiles at (n, block, row) of x, and of tiles.

    `u` (1, points, blocks * tiles of the strip and more, lanes) is written. The input of `whole`
    rows ends within the buffer of x; the one that may follow is the last of the plane.
    """
    n, block, row = at
    for first, count, at_row in ((0, whole, 0), (whole, rows - whole, spec.rows - 1)):
        if not count:
            continue
        for column, column_count in _whole_and_last(spec, 1):
            with T.grid(count, column_count) as (i, j):
                tile = (block * rows + first + i) * spec.columns + column + j
                inside = _inside(spec, (at_row, column))
                place = (n, block, row + first + i, column + j)
                _transform_tile(spec, x, place, inside, u, (0, tile))


def _transform_tile(spec: Winograd, x, at: tuple, inside: tuple, u, to: tuple) -> None:
    """Read a tile of x at (n, block, row, column) of tiles, write it at (n, tile) of u.

    What a last tile has past the buffer, not `inside`, only pixels past y read.
    """
    n, block, row, column = at
    points, lanes, (top, left) = spec.side, spec.conv.x.lanes, _origin(spec)
    d = registers(points, points, lanes=lanes)
    with T.vectorized(0, lanes) as v:
        for c in range(points):
            values = [
                x[n, block, top + row * spec.m + r, left + column * spec.m + c, v]
                if r < inside[0] and c < inside[1]
                else T.float32(0)
                for r in range(points)
            ]
            for r, value in enumerate(input_transform(values)):
                T.buffer_store(d[r, c], value, [v])
    with T.vectorized(0, lanes) as v:
        for r in range(points):
            values = input_transform([d[r, c][v] for c in range(points)])
            for c, value in enumerate(values):
                T.buffer_store(u, value, [to[0], r * points + c, to[1], v])


def _origin(spec: Winograd) -> tuple[int, int]:
    """Row and column of the buffer of x at which the first tile starts."""
    top, left = (spec.conv.x.halo - pad for pad in spec.conv.pad)
    return top, left


def _inside(spec: Winograd, tile: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns from the start of a tile to the end of the buffer of x."""
    sides = spec.conv.x.shape[2:4]
    rows, columns = (
        side - first - spec.m * at
        for side, first, at in zip(sides, _origin(spec), tile, strict=True)
    )
    return rows, columns


def whole_rows(spec: Winograd) -> int:
    """How many rows of tiles have input that ends within the buffer."""
    return sum(count for first, count in _whole_and_last(spec, 0) if not first)


def _whole_and_last(spec: Winograd, axis: int) -> list[tuple[int, int]]:
    """(first, count) of tiles whose input ends within the buffer, and of the last one if not."""
    tiles = (spec.rows, spec.columns)[axis]
    whole = min(tiles, (_inside(spec, (0, 0))[axis] - spec.side + spec.m) // spec.m)
    return [part for part in ((0, whole), (whole, tiles - whole)) if part[1]]
