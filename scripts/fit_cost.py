# SPDX-License-Identifier: Apache-2.0
"""Fit the [cost] table of a SoC profile to timings of this machine; prints the table.

Times direct and Winograd kernels over layers and open fractions, with weights that come from memory
as those of large networks do, and from the last-level cache, and solves for the non-negative costs
that explain the times best, relative errors weighing alike. Run it on a quiet machine:
python scripts/fit_cost.py
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import tvm
from rich.progress import track
from scipy.optimize import nnls

from tvm_dynprune.bench.turns import pinned
from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.direct_conv2d import direct_conv2d
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.winograd_conv2d import Winograd, winograd_conv2d, winograd_input
from tvm_dynprune.passes.kernel_cost import WinogradPlane, direct_cost, gather_cost, winograd_cost
from tvm_dynprune.soc import Cost, Soc, load_soc

LAYERS = ((64, 56), (64, 32), (128, 28), (128, 16), (256, 14), (256, 8), (512, 7), (512, 4))
OPEN = (1.0, 0.5, 0.25)
ALGORITHMS = ("direct", "winograd_2", "winograd_4")
VISITS = ("all", "blocks", "gather")  # what has no gates, and groups above and below the lanes
# Weights that are gone through in turns: by whether they are to be in the last-level cache, MiB.
IN_TURNS_MIB = {False: 96, True: 12}


def main() -> None:
    """Measure, fit, print."""
    soc = load_soc("host")
    rows, times = [], []
    with pinned(1):
        for (channels, size), *case in track(list(_cases()), "timing kernels"):
            for fraction, time_ns in _times(soc, channels, size, *case).items():
                rows.append(_features(soc, channels, size, *case, fraction))
                times.append(time_ns)
    matrix, times = np.array(rows), np.array(times)
    solution, _ = nnls(matrix / times[:, None], np.ones(len(times)))
    fma, *costs = solution
    errors = np.abs(matrix @ solution / times - 1)
    print(f"# one vector multiply-add: {fma:.3f} ns; median error {np.median(errors):.0%}")
    print("[cost]")
    for field, value in zip(fields(Cost), costs, strict=True):
        print(f"{field.name} = {value / fma:.1f}")


def _cases() -> Iterator[tuple[tuple[int, int], str, str, bool]]:
    """Layer, algorithm, visit, and whether weights come from the last-level cache."""
    for case in itertools.product(LAYERS, ALGORITHMS, VISITS, (False, True)):
        _, algorithm, visit, cached = case
        if visit != "gather" or (algorithm == "direct" and not cached):
            yield case


def _features(
    soc: Soc, channels: int, size: int, algorithm: str, visit: str, cached: bool, fraction: float
) -> list[float]:
    """How often multiply-adds, transforms and weights occur: the cost is linear in its terms."""

    def cost(*values: float) -> float:
        given = Cost(*values)
        if cached:
            given = replace(given, weight=given.cached_weight)
        open_in, blocks = channels * fraction, channels / soc.lanes * fraction
        if algorithm == "direct":
            more = gather_cost(open_in, blocks, (3, 3), given) if visit == "gather" else 0
            return direct_cost(open_in, blocks, size * size, (3, 3), given) + more
        plane = WinogradPlane(size, size, int(algorithm[-1]), 3, visit != "all", cached)
        return winograd_cost(open_in, blocks, plane, soc.lanes, given)

    units = np.eye(len(fields(Cost)))
    base = cost(*np.zeros(len(units)))
    return [base, *(cost(*unit) - base for unit in units)]


def _times(
    soc: Soc, channels: int, size: int, algorithm: str, visit: str, cached: bool
) -> dict[float, float]:
    """Open fraction → ns of the kernel, or kernels; none of weights too large for the cache."""
    image = FeatureMap(1, channels, size, size, soc.lanes, 1)
    gathers = visit == "gather"
    spec = Conv2d(
        x=image,
        y=image,
        kernel=(3, 3),
        stride=(1, 1),
        pad=(1, 1),
        dilation=(1, 1),
        open_in=visit != "all",
        unit_in=1 if gathers else soc.lanes,
        visit=visit,
        registers=soc.vector_registers,
    )
    tensor = tvm.runtime.tensor
    x, y = (tensor(np.zeros(image.shape, "float32")) for _ in range(2))
    if algorithm == "direct":
        stages, u = [], x
        kernel = _compiled(soc, direct_conv2d(spec))
        inner = spec.reduction.weight_shape
        shape = (*inner, channels) if gathers else (image.blocks, *inner, soc.lanes)
    else:
        winograd = Winograd(spec, int(algorithm[-1]), cached)
        u = tensor(np.zeros(winograd.transformed_shape, "float32"))
        stages = [_compiled(soc, winograd_input(winograd))]
        kernel = _compiled(soc, winograd_conv2d(winograd))
        shape = winograd.weight_shape
    copies = IN_TURNS_MIB[cached] * 2**20 // (4 * int(np.prod(shape)))
    if copies == 0 and cached:
        return {}
    weights = [tensor(np.zeros(shape, "float32")) for _ in range(min(max(1, copies), 64))]
    result = {}
    for fraction in OPEN if visit != "all" else (1.0,):
        lists = _lists(channels if gathers else image.blocks, fraction) if visit != "all" else ()
        samples = []
        for weight in (weights * 9)[: max(9, 3 * len(weights))]:
            before = sum(_once(stage, x, *lists, u) for stage in stages)
            samples.append(before + _once(kernel, u, weight, *lists, *lists, y))
        result[fraction] = float(np.median(samples)) * 1e9
    return result


def _compiled(soc: Soc, kernel: tvm.tirx.PrimFunc):
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=soc.tvm_target())["main"]


def _once(kernel, *arguments: tvm.runtime.Tensor) -> float:
    # Not by a time_evaluator, which runs once before it times and so warms the caches.
    started = time.perf_counter()
    kernel(*arguments)
    return time.perf_counter() - started


def _lists(length: int, fraction: float) -> tuple[tvm.runtime.Tensor, tvm.runtime.Tensor]:
    kept = max(1, round(length * fraction))
    order = np.random.default_rng(0).permutation(length)
    items = np.concatenate([np.sort(order[:kept]), np.sort(order[kept:])]).astype("int32")
    return tvm.runtime.tensor(items[None]), tvm.runtime.tensor(np.array([kept], "int32"))


if __name__ == "__main__":
    main()
