# SPDX-License-Identifier: Apache-2.0
"""Time convolution kernels on one core, as shares of its measured peak, and print a table.

Groups of as many channels as the machine has lanes; weights in the caches. Winograd's share counts
the multiply-accumulates of a direct convolution, and so can pass 1. Run it on a quiet machine:
python scripts/bench_kernels.py
"""

from tvm_dynprune.bench.kernels import KernelCase, time_kernel
from tvm_dynprune.bench.layers import measure_peak
from tvm_dynprune.bench.turns import pinned
from tvm_dynprune.soc import load_soc

LAYERS = (  # channels, size, kernel: of ResNet-18, and what 1x1 kernels it would have
    ((64, 64), 56, 3),
    ((128, 128), 28, 3),
    ((256, 256), 14, 3),
    ((512, 512), 7, 3),
    ((256, 512), 14, 1),
)
OPEN = (1.0, 0.5, 0.25)
RUNS = 101


def main() -> None:
    """Measure and print Markdown."""
    soc = load_soc("host")
    with pinned(1):
        peak = measure_peak()
        print(f"One core's multiply-add peak: {peak:.0f} GFLOP/s")
        print()
        print("| layer (C_in, C_out, H=W, k) | algorithm | no gates | all open | ½, ½ | ¼, ¼ |")
        print("|---|---|---|---|---|---|")
        for channels, size, kernel in LAYERS:
            for algorithm in ("direct", "winograd_4")[: 1 + (kernel == 3)]:
                cells = [
                    f"{time_ms:.3f} ms, {2e-6 * fraction**2 * case.macs / time_ms / peak:.0%}"
                    for visit, fractions in (("all", (1.0,)), ("blocks", OPEN))
                    for case in [KernelCase(channels, size, kernel, algorithm, visit)]
                    for fraction, time_ms in time_kernel(soc, case, fractions, runs=RUNS).items()
                ]
                layer = ", ".join(map(str, (*channels, size, kernel)))
                print(f"| {layer} | {algorithm} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
