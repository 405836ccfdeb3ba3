# SPDX-License-Identifier: Apache-2.0
"""Cut an output plane into tiles of accumulators that fit the vector registers, and share it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

SPARE_REGISTERS = 4  # weight vector, broadcast input, and slack for the compiler
_FEW = 12
_BUSY = 4  # pixels, at least, whose sums keep the multipliers busy
_STEP_COST = 3  # pixels' worth of what a step of a tile costs besides multiplying


@dataclass(frozen=True)
class Tile:
    """`row_count` x `column_count` tiles of `height` x `width` pixels, the first at row, column."""

    row: int
    column: int
    height: int
    width: int
    row_count: int
    column_count: int

    @property
    def pixels(self) -> list[tuple[int, int]]:
        """Row and column of each pixel of a tile, counted from the tile's first."""
        return [(i, j) for i in range(self.height) for j in range(self.width)]


def tile_size(height: int, width: int, most: int) -> tuple[int, int]:
    """Height and width of tiles that keep the registers busy.

    Rows of up to `most` accumulators, as equal as can be; narrow planes take several rows at a
    time. Few accumulators are worth a choice: the tiles that promise to take least.
    """
    if most <= _FEW:
        sizes = tile_sizes(height, width, most)
        return min(sizes, key=lambda s: (tiles_cost(height, width, s), abs(s[0] - s[1])))
    tile_width = -(-width // -(-width // most))
    most_rows = max(1, most // tile_width) if tile_width == width else 1
    return -(-height // -(-height // most_rows)), tile_width


def tile_sizes(height: int, width: int, most: int) -> list[tuple[int, int]]:
    """All sizes of at most `most` pixels that fit the plane."""
    return [
        (h, w) for h in range(1, min(height, most) + 1) for w in range(1, min(width, most // h) + 1)
    ]


def tiles(height: int, width: int, size: tuple[int, int]) -> list[Tile]:
    """Tiles that cover every pixel once: those of `size`, then the edges', of as many pixels."""
    most = size[0] * size[1]
    rows, columns = height // size[0] * size[0], width // size[1] * size[1]
    right, low = width - columns, height - rows
    result = [Tile(0, 0, *size, rows // size[0], columns // size[1])] if rows and columns else []
    if right:
        for row, tall, count in cut(height, min(height, most // right)):
            result.append(Tile(row, columns, tall, right, count, 1))
    if low and columns:
        for column, wide, count in cut(columns, min(columns, most // low)):
            result.append(Tile(rows, column, low, wide, 1, count))
    return result


def tiles_cost(height: int, width: int, size: tuple[int, int]) -> int:
    """What the tiles of a plane take, in pixels: more than they have, the more so if small."""
    return sum(
        tile.row_count * tile.column_count * (max(len(tile.pixels), _BUSY) + _STEP_COST)
        for tile in tiles(height, width, size)
    )


def cut(length: int, size: int) -> list[tuple[int, int, int]]:
    """(start, size, count) of the full pieces of `length`, and of the rest."""
    full, rest = divmod(length, size)
    pieces = [(0, size, full), (full * size, rest, 1)]
    return [piece for piece in pieces if piece[1] and piece[2]]


def cut_evenly(length: int, most: int) -> list[tuple[int, int, int]]:
    """(start, size, count) of the fewest pieces of at most `most`, as equal as can be."""
    return cut(length, -(-length // -(-length // most)))


@dataclass(frozen=True)
class Part:
    """One of `count` parts of a plane, number `index`, that threads compute apart.

    Few open channels alone would leave threads without work.
    """

    index: tirx.Var | int = 0
    count: int = 1

    @contextmanager
    def share(self, length: int, turn: int = 0) -> Iterator[tirx.Var]:
        """Walk this part's share of range(length); `turn` decides who gets what is left over."""
        index = self.index if turn % 2 else self.count - 1 - self.index
        first, end = ((index + k) * length // self.count for k in (0, 1))
        with T.serial(first, end) as i:
            yield i

    @contextmanager
    def first(self) -> Iterator[None]:
        """What only the first part does."""
        if self.count == 1:
            yield
        else:
            with T.If(self.index == 0), T.Then():
                yield


@contextmanager
def parallel(count, parts: int, *, by_part: bool = False) -> Iterator[tuple[Any, Part]]:
    """Walk range(count) and the parts of each in parallel; `by_part`, all of a part first."""
    if isinstance(count, int) and count == parts == 1:
        yield 0, Part()
        return
    with T.parallel(0, count * parts) as i:
        if parts == 1:
            yield i, Part()
        elif by_part:
            yield tirx.floormod(i, count), Part(tirx.floordiv(i, count), parts)
        else:
            yield tirx.floordiv(i, parts), Part(tirx.floormod(i, parts), parts)


def by_run(i, runs: list[tuple]) -> Iterator[tuple[int, Any]]:
    """Emit where in runs (first position, times, at a time) turn `i` of a loop over all of them is.

    Yields each run's number and the position in it; what is emitted then is done there.
    """
    before = 0
    for number, (first, times, at_once) in enumerate(runs):
        position = first + (i - before) * at_once
        if len(runs) == 1:
            yield number, position
        else:
            with T.If(tirx.all(i >= before, i < before + times)), T.Then():
                yield number, position
        before += times
