# SPDX-License-Identifier: Apache-2.0
"""A convolution with steps of 2 over few channels as one with steps of 1 over four times as many.

Each 2x2 square of pixels becomes one pixel of 4 C channels. So the first layer of a network, a 7x7
kernel on 3 channels, becomes a 4x4 kernel on 12, which Winograd's algorithm can compute.
"""

from dataclasses import replace

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.blocking import Affine
from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.feature_map import FeatureMap, zero_halo


def _offset(pad: int) -> int:
    """Zero weights before the first one, so that the window starts at an even pixel."""
    return pad % 2


def kernel_after(kernel: int, pad: int) -> int:
    """Side of the kernel over squares."""
    return -(-(kernel + _offset(pad)) // 2)


def conv2d_over_squares(spec: Conv2d) -> Conv2d:
    """The equal convolution with steps of 1, by Winograd; its x is what `space_to_depth` writes."""
    x, pad = spec.x, tuple(-(-p // 2) for p in spec.pad)
    kernel = tuple(kernel_after(k, p) for k, p in zip(spec.kernel, spec.pad, strict=True))
    halo = max(*pad, *(k - 1 for k in kernel))
    rows, columns = -(-x.height // 2), -(-x.width // 2)
    lanes = -(-4 * x.channels // spec.y.lanes) * spec.y.lanes  # whole vectors
    squares = FeatureMap(x.batch, 4 * x.channels, rows, columns, lanes, halo)
    schedule = replace(spec.schedule, algorithm="winograd_4")
    return replace(spec, x=squares, kernel=kernel, stride=(1, 1), pad=pad, schedule=schedule)


def weight_over_squares(weight: np.ndarray, spec: Conv2d) -> np.ndarray:
    """Weights (C_out, C, KH, KW) of `spec` as (C_out, 4 C, r, r) of `conv2d_over_squares`."""
    c_out, c, *kernel = weight.shape
    sides = [kernel_after(k, p) for k, p in zip(kernel, spec.pad, strict=True)]
    top, left = (_offset(p) for p in spec.pad)
    padded = np.zeros((c_out, c, 2 * sides[0], 2 * sides[1]), "float32")
    padded[:, :, top : top + kernel[0], left : left + kernel[1]] = weight
    split = padded.reshape(c_out, c, sides[0], 2, sides[1], 2)
    return split.transpose(0, 1, 3, 5, 2, 4).reshape(c_out, 4 * c, *sides)


def space_to_depth(
    plain: tuple[int, int, int, int], size: FeatureMap, affine: Affine | None = None
) -> tirx.PrimFunc:
    """Kernel x (N, C, H, W) → y blocked; channel 4 c + 2 a + b is pixel (a, b) of a square.

    The image is normalised on the way, if asked for. Lanes past the last channel stay unwritten.
    """
    channels, height, width = plain[1:]
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            x = T.arg("x", T.buffer(plain, "float32"))
            y = size.argument("y")
            with T.serial(0, size.batch) as n:
                zero_halo(y, size, n, 0)
                with T.parallel(0, size.height) as row, T.serial(0, size.width) as column:
                    for pair in range(2 * channels):  # neighbours in both x and y
                        c, h = pair // 2, 2 * row + pair % 2
                        with T.vectorized(0, 2) as k:
                            w = 2 * column + k
                            value = x[n, c, _within(h, height), _within(w, width)]
                            if affine is not None:
                                value = affine(value, c)
                            if height % 2 or width % 2:
                                inside = tirx.And(h < height, w < width)
                                value = tirx.if_then_else(inside, value, T.float32(0))
                            at = [n, 0, row + size.halo, column + size.halo, 2 * pair + k]
                            T.buffer_store(y, value, at)
    return builder.get()


def _within(position, size: int):
    """The position, or the last one if it is past it, which it is by no more than 1."""
    return tirx.min(position, size - 1) if size % 2 else position
