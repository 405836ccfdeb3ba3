# SPDX-License-Identifier: Apache-2.0
"""Curves of tuning runs: expected time of a network's kernels against minutes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tvm_dynprune.files import write_atomic


def plot_curves(curves: Mapping[str, Sequence[tuple[int, float, float]]], path: Path) -> None:
    """Draw the curves of `tune.curve.tuning_curve`, by name, as an SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        minutes = [at_s / 60 for _, at_s, _ in curve]
        axes.step(minutes, [ms for *_, ms in curve], where="post", label=name)
    axes.set_xlabel("minutes of tuning")
    axes.set_ylabel("expected time of all tuned kernels, ms")
    axes.grid(alpha=0.3)
    axes.legend()
    with write_atomic(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
