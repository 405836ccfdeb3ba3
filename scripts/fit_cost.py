# SPDX-License-Identifier: Apache-2.0
"""Fit the [cost] table of a SoC profile to timings of this machine; prints the table.

Times direct and Winograd kernels over layers and open fractions, with weights that come from memory
as those of large networks do, and from the last-level cache, and solves for the non-negative costs
that explain the times best, relative errors weighing alike. Run it on a quiet machine, with the
extra `tune`: python scripts/fit_cost.py
"""

import itertools
from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
from rich.progress import track
from scipy.optimize import nnls

from tvm_dynprune.bench.kernels import KernelCase, time_kernel
from tvm_dynprune.bench.turns import pinned
from tvm_dynprune.passes.conv2d_spec import kernel_target
from tvm_dynprune.passes.kernel_cost import WinogradPlane, direct_cost, gather_cost, winograd_cost
from tvm_dynprune.soc import Cost, Soc, load_soc

LAYERS = ((64, 56), (64, 32), (128, 28), (128, 16), (256, 14), (256, 8), (512, 7), (512, 4))
OPEN = (1.0, 0.5, 0.25)
ALGORITHMS = ("direct", "winograd_2", "winograd_4")
VISITS = ("all", "blocks", "gather")  # what has no gates, and groups above and below the lanes
# Copies of the weights: by whether they are to be in the last-level cache, or in memory.
IN_TURNS_MIB = {False: 96, True: 12}
MOST_CACHED_CHANNELS = 256  # whose weights are that small


def main() -> None:
    """Measure, fit, print."""
    soc = load_soc("host")
    rows, times = [], []
    with pinned(1):
        for case, cached in track(list(_cases()), "timing kernels"):
            fractions = OPEN if case.visit != "all" else (1.0,)
            for fraction, time_ms in time_kernel(soc, case, fractions, quick=cached).items():
                rows.append(_features(soc, case, cached, fraction))
                times.append(time_ms)
    matrix, times = np.array(rows), np.array(times)
    solution, _ = nnls(matrix / times[:, None], np.ones(len(times)))
    fma, *costs = solution
    errors = np.abs(matrix @ solution / times - 1)
    print(f"# one vector multiply-add: {fma * 1e6:.3f} ns; median error {np.median(errors):.0%}")
    print("[cost]")
    for field, value in zip(fields(Cost), costs, strict=True):
        print(f"{field.name} = {value / fma:.1f}")


def _cases() -> Iterator[tuple[KernelCase, bool]]:
    """Each kernel, and whether its weights come from the last-level cache."""
    for case in itertools.product(LAYERS, ALGORITHMS, VISITS, (False, True)):
        (channels, size), algorithm, visit, cached = case
        if cached and (visit == "gather" or channels > MOST_CACHED_CHANNELS):
            continue
        yield (
            KernelCase((channels,) * 2, size, 3, algorithm, visit, IN_TURNS_MIB[cached]),
            cached,
        )


def _features(soc: Soc, case: KernelCase, cached: bool, fraction: float) -> list[float]:
    """How often multiply-adds, transforms and weights occur: the cost is linear in its terms."""

    def cost(*values: float) -> float:
        given = Cost(*values)
        if cached:
            given = replace(given, weight=given.cached_weight)
        open_in, blocks = (c * fraction for c in (case.channels[0], case.channels[1] / soc.lanes))
        gathers = case.visit == "gather"
        more = gather_cost(open_in, blocks, (3, 3), given) if gathers else 0
        if case.algorithm == "direct":
            return direct_cost(open_in, blocks, case.size**2, (3, 3), given) + more
        m = int(case.algorithm[-1])
        registers = kernel_target(soc).transform_registers
        gated = case.visit != "all"
        plane = WinogradPlane(case.size, case.size, m, 3, gated, cached, gathers, registers)
        return winograd_cost(open_in, blocks, plane, soc.lanes, given) + more

    units = np.eye(len(fields(Cost)))
    base = cost(*np.zeros(len(units)))
    return [base, *(cost(*unit) - base for unit in units)]


if __name__ == "__main__":
    main()
