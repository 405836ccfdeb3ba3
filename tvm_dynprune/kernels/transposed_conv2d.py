# SPDX-License-Identifier: Apache-2.0
"""A transposed convolution with steps of (s, t) as convolutions with steps of 1.

Pixels of the result that are as far from a multiple of the step read the same taps of the kernel
("Deconvolution and checkerboard artifacts", Odena et al., Distill 2016): those are a *phase*. Row
``s * i + a`` is the sum over d of row ``i - d`` of x times tap ``s * d + a + pad``. Phases whose
windows are equal are one convolution, whose channels are those of the phases in a row;
`interleave_phases` puts the pixels where they belong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T
from tvm.tirx import Buffer

from tvm_dynprune.kernels.feature_map import FeatureMap, zero_halo


@dataclass(frozen=True)
class Window:
    """Rows, or columns, of x that one of the result's reads: `taps`, from row ``i - pad`` on."""

    taps: int
    pad: int


@dataclass(frozen=True)
class PhaseGroup:
    """Phases (a, b) with the same window in both directions."""

    rows: Window
    columns: Window
    phases: tuple[tuple[int, int], ...]


def window_of(kernel: int, stride: int, pad: int, phase: int) -> Window:
    """The window of a phase; the kernel is at least as large as the step."""
    first = -((phase + pad) // stride)
    last = (kernel - 1 - phase - pad) // stride
    return Window(last - first + 1, last)


def phase_groups(
    kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int]
) -> list[PhaseGroup]:
    """All phases, by window."""
    sides = zip(kernel, stride, pad, strict=True)
    rows, columns = ([window_of(k, s, p, a) for a in range(s)] for k, s, p in sides)
    groups: dict[tuple[Window, Window], list[tuple[int, int]]] = {}
    for a, b in product(range(stride[0]), range(stride[1])):
        groups.setdefault((rows[a], columns[b]), []).append((a, b))
    return [PhaseGroup(*windows, tuple(phases)) for windows, phases in groups.items()]


def halo_needed(kernel: int, stride: int, pad: int, size: int, result: int) -> int:
    """Zeros on either side of `size` rows of x that `result` rows read."""
    last, reached = -(-result // stride) - 1, 0
    for phase in range(stride):
        window = window_of(kernel, stride, pad, phase)
        reached = max(reached, window.pad, last - window.pad + window.taps - size)
    return reached


def phase_channels(c_out: int, lanes: int) -> int:
    """Channels of a phase: those of the result in whole blocks, but for a few, which have none."""
    return c_out if c_out < lanes else -(-c_out // lanes) * lanes


def phase_weight(
    weight: np.ndarray, group: PhaseGroup, stride: tuple[int, int], pad: tuple[int, int], lanes: int
) -> np.ndarray:
    """Weights (C_in, C_out, KH, KW) of a group's convolution.

    Returns
    -------
    np.ndarray
        (phases * C, C_in, taps, taps), C being `phase_channels`.
    """
    c_in, c_out = weight.shape[:2]
    size = (
        len(group.phases), phase_channels(c_out, lanes), c_in, group.rows.taps, group.columns.taps
    )  # fmt: skip
    result = np.zeros(size, "float32")
    for number, (a, b) in enumerate(group.phases):
        rows, columns = (
            [step * (window.pad - t) + phase + before for t in range(window.taps)]
            for window, step, phase, before in zip(
                (group.rows, group.columns), stride, (a, b), pad, strict=True
            )
        )
        result[number, :c_out] = weight[:, :, rows][:, :, :, columns].swapaxes(0, 1)
    return result.reshape(-1, *size[2:])


def interleave_phases(
    groups: Sequence[PhaseGroup], sources: Sequence[FeatureMap], y: FeatureMap, stride: tuple
) -> tirx.PrimFunc:
    """Build the kernel: the groups' results (`sources`) → y."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            inputs = [size.argument(f"phases_{k}") for k, size in enumerate(sources)]
            result = y.part_of(y.argument("y"))
            with T.serial(0, y.batch) as n, T.parallel(0, y.blocks) as block:
                zero_halo(result, y, n, block)
                for source, group in zip(inputs, groups, strict=True):
                    for number, (a, b) in enumerate(group.phases):
                        rows, columns = -(-(y.height - a) // stride[0]), y.width - b
                        columns = -(-columns // stride[1])
                        with T.grid(rows, columns) as (i, j):
                            row, column = stride[0] * i + a + y.halo, stride[1] * j + b + y.halo
                            to = (n, block, row, column)
                            _copy_pixel(source, number, (i, j), result, to, y)
    return builder.get()


def _copy_pixel(source: Buffer, number: int, at: tuple, result: Buffer, to: tuple, y: FeatureMap):
    """Emit the copy of a phase's pixel: one of whole blocks, or a few channels of one."""
    n, block, *_ = to
    if y.channels >= y.lanes:
        with T.vectorized(0, y.lanes) as v:
            value = source[(n, number * y.blocks + block, *at, v)]
            T.buffer_store(result, value, [*to, v])
        return
    for channel in range(y.channels):
        from_block, lane = divmod(number * y.channels + channel, y.lanes)
        T.buffer_store(result, source[(n, from_block, *at, lane)], [*to, channel])
