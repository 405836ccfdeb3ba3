# SPDX-License-Identifier: Apache-2.0
"""Pooling for ONNX's reference evaluator, whose own takes Python's time for every pixel.

Minutes for a network such as GoogLeNet. What is unusual is left to the evaluator's own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.ops.op_average_pool import AveragePool_19
from onnx.reference.ops.op_max_pool import MaxPool as SlowMaxPool


class MaxPool(SlowMaxPool):
    """MaxPool over (N, C, H, W) without indices, by NumPy."""

    def _run(self, x: np.ndarray, **attributes: Any) -> tuple:
        if len(self.output) > 1 or not _is_usual(x, attributes):
            return super()._run(x, **attributes)
        return (_windows(x, -np.inf, attributes).max(axis=(4, 5)),)


class AveragePool(AveragePool_19):
    """AveragePool over (N, C, H, W) whose windows end inside the padding, by NumPy."""

    def _run(self, x: np.ndarray, **attributes: Any) -> tuple:
        if attributes.get("ceil_mode") or not _is_usual(x, attributes):
            return super()._run(x, **attributes)
        sums = _windows(x, 0, attributes).sum(axis=(4, 5))
        padding = 1 if attributes.get("count_include_pad") else 0
        ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
        return (sums / _windows(ones, padding, attributes).sum(axis=(4, 5)),)


def _is_usual(x: np.ndarray, attributes: dict[str, Any]) -> bool:
    return x.ndim == 4 and attributes.get("auto_pad") in (None, "NOTSET")


def _pair(attributes: dict[str, Any], name: str, default: Sequence[int]) -> Sequence[int]:
    return attributes.get(name) or default


def _windows(x: np.ndarray, fill: float, attributes: dict[str, Any]) -> np.ndarray:
    """A view (N, C, OH, OW, KH, KW) of x, padded with `fill`."""
    kernel, pads = attributes["kernel_shape"], _pair(attributes, "pads", (0, 0, 0, 0))
    strides, steps = (_pair(attributes, name, (1, 1)) for name in ("strides", "dilations"))
    counts, reaches, padding = [], [], [(0, 0), (0, 0)]
    for axis in range(2):
        reach = (kernel[axis] - 1) * steps[axis] + 1
        before, behind = pads[axis], pads[axis + 2]
        room = x.shape[2 + axis] + before + behind - reach
        count = room // strides[axis] + 1
        if attributes.get("ceil_mode") and room % strides[axis]:
            # A window that would start behind the image is none.
            count += (count * strides[axis]) < x.shape[2 + axis] + before
        counts.append(count)
        reaches.append(reach)
        padding.append((before, behind + strides[axis]))
    padded = np.pad(x, padding, constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, reaches, axis=(2, 3))
    view = view[:, :, :: strides[0], :: strides[1], :: steps[0], :: steps[1]]
    return view[:, :, : counts[0], : counts[1]]
