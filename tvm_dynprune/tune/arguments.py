# SPDX-License-Identifier: Apache-2.0
"""What a candidate's kernels are called with: random tensors, and real open lists."""

from collections.abc import Callable, Iterator
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
    """The arguments of one run, but for the weights.

    Attributes
    ----------
    first
        Of the first kernel, if there are two.
    source, rest
        Of the other one: before and after its weights.
    groups
        The groups for which a branch of a conditional is called, one after the other; None for a
        kernel that is called once.
    """

    first: list[Any] | None
    source: Any
    rest: list[Any]
    groups: list[int] | None

    def kernel(self, weight: Any) -> Iterator[list[Any]]:
        """The arguments of each call of the kernel."""
        arguments = [self.source, weight, *self.rest]
        return iter([arguments] if self.groups is None else ([*arguments, g] for g in self.groups))


def weights_of(spec: Conv2d, tensor: Callable[[np.ndarray], Any], *, copies: bool) -> list[Any]:
    """A kernel's packed weights; with `copies` as many of them as no cache holds."""
    shape = Convolution(spec).weight_shape
    weight = np.random.default_rng(0).standard_normal(shape, "float32")
    count = min(MOST_COPIES, COPIES_MIB * 2**20 // weight.nbytes + 1) if copies else 1
    return [tensor(weight) for _ in range(count)]


def arguments_of(spec: Conv2d, lists: OpenLists, tensor: Callable[[np.ndarray], Any]) -> Calls:
    """Arguments for one of a task's inputs.

    Parameters
    ----------
    spec, lists
        The kernel, and what is open.
    tensor
        Puts an array where the kernel runs.
    """
    convolution, rng = Convolution(spec), np.random.default_rng(0)
    x, y = tensor(_random(rng, spec.x.shape)), tensor(np.zeros(spec.y.shape, "float32"))
    listed: list[Any] = []
    if spec.open_in and lists.open_in is not None:
        unit = spec.x.lanes if spec.by_input_block else 1
        listed += map(tensor, _list(lists.open_in, unit, spec.x))
    if spec.visit in ("blocks", "gather") and lists.open_out is not None:
        unit = spec.y.lanes if spec.visit == "blocks" else 1
        listed += map(tensor, _list(lists.open_out, unit, spec.y))
    first, source = None, x
    if convolution.first is not None and convolution.winograd is not None:
        source = tensor(np.zeros(convolution.winograd.transformed_shape, "float32"))
        blocks = []
        if spec.open_in and lists.open_in is not None:
            blocks = _list(lists.open_in, spec.x.lanes, spec.x)
        first = [x, *map(tensor, blocks), source]
    rest = [*map(tensor, _epilogue(rng, spec)), *listed, y]
    return Calls(first, source, rest, _groups(spec, lists))


def _groups(spec: Conv2d, lists: OpenLists) -> list[int] | None:
    if spec.visit != "group":
        return None
    channels = range(spec.y.channels) if lists.open_out is None else lists.open_out
    return sorted({channel // (spec.group_blocks * spec.y.lanes) for channel in channels})


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
