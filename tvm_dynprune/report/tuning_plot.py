# SPDX-License-Identifier: Apache-2.0
"""Plots of tuning logs: expected time against minutes, fitted time against measured."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_dynprune.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    _write(figure, path)


def plot_costs(costs: Iterable[Any], path: Path) -> None:
    """Draw fitted against measured time of open sets, `OpenCostTrial`s, as an SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    ran = [trial for trial in costs if trial.failure is None and trial.held_out]
    for name, held_out, marker in (("fitted to", False, "."), ("held out", True, "x")):
        pairs = [
            (seconds * 1e3, trial.cost.seconds(open_in, open_out) * 1e3)
            for trial in ran
            for i, (open_in, open_out, seconds) in enumerate(trial.points)
            if (i >= len(trial.points) - trial.held_out) == held_out
        ]
        axes.loglog(*zip(*pairs, strict=True), marker, label=name, alpha=0.7, rasterized=True)
    axes.axline((1, 1), (10, 10), color="grey", linewidth=1)
    axes.set_xlabel("measured, ms")
    axes.set_ylabel("fitted, ms")
    axes.grid(alpha=0.3)
    axes.legend()
    _write(figure, path)


def _write(figure: "Figure", path: Path) -> None:
    with write_atomic(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
