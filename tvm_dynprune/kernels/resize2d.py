# SPDX-License-Identifier: Apache-2.0
"""Resize planes: the nearest pixel, or between the two nearest in either direction.

Which pixels these are is known when the kernel is built; it reads them from tables.
"""

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.feature_map import FeatureMap, zero_block, zero_halo
from tvm_dynprune.kernels.open_list import list_arguments

METHODS = ("nearest_neighbor", "linear")
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
_EPSILON = 1e-5  # that quotients just below a whole number count as this number


@dataclass(frozen=True)
class Resize2d:
    """What one kernel computes; `method`, `coordinates` and `rounding` as Relax names them.

    `listed` visits the blocks that a list names; the others become 0 if `fill`, and stay unwritten
    if not.
    """

    x: FeatureMap
    y: FeatureMap
    method: str
    coordinates: str
    rounding: str
    listed: bool = False
    fill: bool = False

    @property
    def tables(self) -> list[np.ndarray]:
        """Which pixels of x are read: for each row, then each column of y.

        Nearest: one table (size,) int32 each. Linear: the pixels before and behind, (2, size)
        int32, and the share of the one behind, (size,) float32.
        """
        sizes = ((self.x.height, self.y.height), (self.x.width, self.y.width))
        positions = [source_positions(*pair, self.coordinates) for pair in sizes]
        tables: list[np.ndarray] = []
        for (size, _), position in zip(sizes, positions, strict=True):
            if self.method == "nearest_neighbor":
                nearest = _rounded(position, self._rounding)
                tables.append(np.clip(nearest, 0, size - 1).astype("int32"))
            else:
                first = np.floor(position)
                both = np.clip(np.stack([first, first + 1]), 0, size - 1)
                tables += [both.astype("int32"), (position - first).astype("float32")]
        return tables

    @property
    def _rounding(self) -> str:
        default = "round" if self.coordinates == "align_corners" else "floor"
        return self.rounding or default


def source_positions(size: int, result: int, coordinates: str) -> np.ndarray:
    """Where the `result` pixels of a side lie among its `size`: (result,) float64.

    As ONNX's operator Resize defines it, attribute ``coordinate_transformation_mode``.
    """
    at = np.arange(result, dtype="float64")
    if coordinates == "align_corners":
        return at * (size - 1) / (result - 1) if result > 1 else 0 * at
    if coordinates == "asymmetric":
        return at * size / result
    if coordinates == "pytorch_half_pixel" and result == 1:
        return 0 * at
    return (at + 0.5) * size / result - 0.5


def _rounded(position: np.ndarray, rounding: str) -> np.ndarray:
    return {
        "round": lambda: np.trunc(position + np.copysign(0.5, position)),
        "round_prefer_floor": lambda: np.ceil(position - 0.5),
        "round_prefer_ceil": lambda: np.floor(position + 0.5),
        "floor": lambda: np.floor(position + _EPSILON),
        "ceil": lambda: np.ceil(position - _EPSILON),
    }[rounding]()


def resize2d(spec: Resize2d) -> tirx.PrimFunc:
    """Build the kernel: x, `Resize2d.tables`, [list_out (N, blocks), count_out (N,)] → y."""
    y = spec.y
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            x = spec.x.argument("x")
            tables = [
                T.arg(f"table_{k}", T.buffer(table.shape, str(table.dtype)))
                for k, table in enumerate(spec.tables)
            ]
            items, count = None, None
            if spec.listed:
                items, count = list_arguments("out", y.batch, y.blocks)
            result = y.part_of(y.argument("y"))
            with T.serial(0, y.batch) as n:
                with T.parallel(0, y.blocks if count is None else count[n]) as position:
                    block = position if items is None else items[n, position]
                    zero_halo(result, y, n, block)
                    _plane(spec, x, tables, result, n, block)
                if items is not None and count is not None and spec.fill:
                    with T.parallel(count[n], y.blocks) as position:
                        zero_block(result, y, n, items[n, position])
    return builder.get()


def _plane(spec: Resize2d, x, tables: list, result, n, block) -> None:
    y, halo = spec.y, spec.x.halo
    with T.grid(y.height, y.width) as (row, column), T.vectorized(0, y.lanes) as v:
        if spec.method == "nearest_neighbor":
            rows, columns = tables
            value = x[n, block, rows[row] + halo, columns[column] + halo, v]
        else:
            rows, low, columns, right = tables
            above, below = (
                _between(
                    x[n, block, rows[k, row] + halo, columns[0, column] + halo, v],
                    x[n, block, rows[k, row] + halo, columns[1, column] + halo, v],
                    right[column],
                )
                for k in range(2)
            )
            value = _between(above, below, low[row])
        T.buffer_store(result, value, [n, block, row + y.halo, column + y.halo, v])


def _between(first, second, share):
    return first * (T.float32(1) - share) + second * share
