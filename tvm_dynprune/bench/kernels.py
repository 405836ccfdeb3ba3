# SPDX-License-Identifier: Apache-2.0
"""Times of single convolution kernels, at any share of open channels."""

import time
from dataclasses import dataclass, replace

import numpy as np
import tvm

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.convolution import Convolution
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.tir_pipeline import TIR_PIPELINE
from tvm_dynprune.soc import Soc

_MOST_COPIES = 64


@dataclass(frozen=True)
class KernelCase:
    """A convolution of a square plane that keeps its size, as one algorithm computes it.

    Attributes
    ----------
    channels
        Input and output.
    size
        Height and width.
    kernel
        Side of the window, odd.
    algorithm
        "direct", "winograd_2" or "winograd_4".
    visit
        As of `Conv2d`: "all" without gates, "blocks" for groups of the lanes, "gather" of 1.
    in_turns_mib
        Size of the copies of the weights that are gone through in turns: 0 for one copy, which
        stays in the caches; more than the caches for weights that come from memory.
    """

    channels: tuple[int, int]
    size: int
    kernel: int = 3
    algorithm: str = "direct"
    visit: str = "all"
    in_turns_mib: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates with everything open."""
        return int(np.prod(self.channels)) * self.size**2 * self.kernel**2

    def conv2d(self, soc: Soc) -> Conv2d:
        """What the kernel computes."""
        x, y = (
            FeatureMap(1, channels, self.size, self.size, soc.lanes, self.kernel // 2)
            for channels in self.channels
        )
        return Conv2d(
            x=x,
            y=y,
            kernel=(self.kernel, self.kernel),
            stride=(1, 1),
            pad=(self.kernel // 2, self.kernel // 2),
            dilation=(1, 1),
            open_in=self.visit != "all",
            unit_in=1 if self.visit == "gather" else soc.lanes,
            visit=self.visit,
            registers=soc.vector_registers,
            by_lane=soc.multiplies_by_lane,
            permutes=soc.permutes,
        )


def time_kernel(
    soc: Soc,
    case: KernelCase,
    open_fractions: tuple[float, ...],
    *,
    quick: bool = False,
    runs: int = 9,
) -> dict[float, float]:
    """Open fraction of both sides → median time in ms of the kernel, or of Winograd's two.

    `quick` is `Schedule.quick_weights`. Each of the `runs`, or more where there are copies of the
    weights, is timed on its own: a kernel that is repeated at once finds its weights in the caches.
    """
    schedule = Schedule(case.algorithm, quick_weights=quick)
    spec = replace(case.conv2d(soc), schedule=schedule)
    convolution = Convolution(spec)
    tensor = tvm.runtime.tensor
    x, y = (tensor(np.zeros(m.shape, "float32")) for m in (spec.x, spec.y))
    stages, u = [], x
    if convolution.first is not None and convolution.winograd is not None:
        u = tensor(np.zeros(convolution.winograd.transformed_shape, "float32"))
        stages = [_compiled(soc, convolution.first)]
    kernel, shape = _compiled(soc, convolution.kernel), convolution.weight_shape
    copies = case.in_turns_mib * 2**20 // (4 * int(np.prod(shape)))
    copies = min(max(1, copies), _MOST_COPIES)
    weights = [tensor(np.zeros(shape, "float32")) for _ in range(copies)]
    result = {}
    for fraction in open_fractions:
        sides = [_list(spec, size, fraction) if spec.open_in else [] for size in (spec.x, spec.y)]
        by_block = _by_block(sides[0], spec) if stages else []
        samples = []
        for weight in (weights * runs)[: max(runs, 3 * copies)]:
            before = sum(_once(stage, x, *by_block, u) for stage in stages)
            samples.append(before + _once(kernel, u, weight, *sides[0], *sides[1], y))
        result[fraction] = float(np.median(samples)) * 1e3
    return result


def _compiled(soc: Soc, kernel: tvm.tirx.PrimFunc):
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=soc.tvm_target(), tir_pipeline=TIR_PIPELINE)["main"]


def _once(kernel, *arguments: tvm.runtime.Tensor) -> float:
    started = time.perf_counter()
    kernel(*arguments)
    return time.perf_counter() - started


def _list(spec: Conv2d, size: FeatureMap, fraction: float) -> list[tvm.runtime.Tensor]:
    """List and count of the open blocks, or channels, drawn at random."""
    length = size.channels if spec.visit == "gather" else size.blocks
    kept = max(1, round(length * fraction))
    order = np.random.default_rng(length).permutation(length)
    return _tensors(np.sort(order[:kept]), np.sort(order[kept:]))


def _by_block(side: list[tvm.runtime.Tensor], spec: Conv2d) -> list[tvm.runtime.Tensor]:
    """The list of blocks that a list names channels of; any other list is returned as it is."""
    if spec.visit != "gather":
        return side
    items, count = (value.numpy() for value in side)
    is_open = np.isin(np.arange(spec.x.blocks), items[0, : count[0]] // spec.x.lanes)
    return _tensors(np.flatnonzero(is_open), np.flatnonzero(~is_open))


def _tensors(first: np.ndarray, rest: np.ndarray) -> list[tvm.runtime.Tensor]:
    items = np.concatenate([first, rest]).astype("int32")[None]
    return [tvm.runtime.tensor(value) for value in (items, np.array([len(first)], "int32"))]
