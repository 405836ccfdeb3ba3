# SPDX-License-Identifier: Apache-2.0
"""What a candidate's kernels are called with: random tensors, and real open lists."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.convolution import Convolution
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.tune.task import OpenLists

MOST_COPIES = 64
COPIES_MIB = 48  # of weights that are gone through in turns: more than last-level caches hold


@dataclass(frozen=True)
class Calls:
    """The arguments of one run: of the first kernel, if there are two, and of the other.

    `kernel` has one list of arguments for each copy of the weights.
    """

    first: list[Any] | None
    kernel: list[list[Any]]


def arguments_of(
    spec: Conv2d, lists: OpenLists, tensor: Callable[[np.ndarray], Any], *, copies: bool
) -> Calls:
    """Arguments for one of a task's inputs.

    Parameters
    ----------
    spec, lists
        The kernel, and what is open.
    tensor
        Puts an array where the kernel runs.
    copies
        Whether there are as many copies of the weights as no cache holds.
    """
    convolution, rng = Convolution(spec), np.random.default_rng(0)
    x, y = tensor(_random(rng, spec.x.shape)), tensor(np.zeros(spec.y.shape, "float32"))
    listed: list[Any] = []
    if lists.open_in is not None:
        unit = spec.x.lanes if spec.by_input_block else 1
        listed += map(tensor, _list(lists.open_in, unit, spec.x))
    if lists.open_out is not None:
        unit = spec.y.lanes if spec.visit == "blocks" else 1
        listed += map(tensor, _list(lists.open_out, unit, spec.y))
    first, source = None, x
    if convolution.winograd is not None:
        source = tensor(np.zeros(convolution.winograd.transformed_shape, "float32"))
        blocks = [] if lists.open_in is None else _list(lists.open_in, spec.x.lanes, spec.x)
        first = [x, *map(tensor, blocks), source]
    weight = rng.standard_normal(convolution.weight_shape, "float32")
    count = min(MOST_COPIES, COPIES_MIB * 2**20 // weight.nbytes + 1) if copies else 1
    rest = [*map(tensor, _epilogue(rng, spec)), *listed, y]
    return Calls(first, [[source, tensor(weight), *rest] for _ in range(count)])


def _epilogue(rng: np.random.Generator, spec: Conv2d) -> list[np.ndarray]:
    """Bias, scale and residual, as `Conv2dBuilder` takes them."""
    y, extra = spec.y, []
    if spec.bias:
        extra.append(_random(rng, (y.blocks * y.lanes,)))
    if spec.scale:
        extra.append(_random(rng, (y.batch, y.channels, 1, 1)))
    if spec.residual is not None:
        extra.append(_random(rng, spec.residual.shape))
    return extra


def _list(channels: list[int], unit: int, size: FeatureMap) -> list[np.ndarray]:
    """List and count of blocks of `unit` channels, as `open_list` makes them, for each sample."""
    is_open = np.zeros(-(-size.channels // unit), bool)
    is_open[np.array(channels, int) // unit] = True
    items = np.concatenate([np.flatnonzero(is_open), np.flatnonzero(~is_open)]).astype("int32")
    return [np.tile(items, (size.batch, 1)), np.full(size.batch, is_open.sum(), "int32")]


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, "float32")
