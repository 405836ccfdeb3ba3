# SPDX-License-Identifier: Apache-2.0
"""Cut an output plane into tiles of accumulators that fit the vector registers."""

from dataclasses import dataclass

SPARE_REGISTERS = 4  # weight vector, broadcast input, and slack for the compiler


@dataclass(frozen=True)
class Tile:
    """`row_count` x `column_count` tiles of `height` x `width` pixels, the first at row, column."""

    row: int
    column: int
    height: int
    width: int
    row_count: int
    column_count: int


def tiles(height: int, width: int, registers: int) -> list[Tile]:
    """Tiles that cover every pixel once: full ones, then those of the right and lower edge.

    Rows of up to ``registers - 4`` accumulators, as equal as can be; narrow planes take several
    rows at a time.
    """
    most = max(1, registers - SPARE_REGISTERS)
    tile_width = -(-width // -(-width // most))
    most_rows = max(1, most // tile_width) if tile_width == width else 1
    tile_height = -(-height // -(-height // most_rows))
    result = []
    for row, row_size, row_count in cut(height, tile_height):
        for column, column_size, column_count in cut(width, tile_width):
            result.append(Tile(row, column, row_size, column_size, row_count, column_count))
    return result


def cut(length: int, size: int) -> list[tuple[int, int, int]]:
    """(start, size, count) of the full pieces of `length`, and of the rest."""
    full, rest = divmod(length, size)
    pieces = [(0, size, full), (full * size, rest, 1)]
    return [piece for piece in pieces if piece[1] and piece[2]]


def cut_evenly(length: int, most: int) -> list[tuple[int, int, int]]:
    """(start, size, count) of the fewest pieces of at most `most`, as equal as can be."""
    return cut(length, -(-length // -(-length // most)))
