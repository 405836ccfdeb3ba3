# SPDX-License-Identifier: Apache-2.0
"""The report's plots, as SVG text to stand inside an HTML page.

Text and axes take the page's own colour (``currentColor``), so they follow light and dark mode;
text stays text, so it can be selected and is drawn in the page's font.
"""

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from tvm_dynprune.report.measurement import ClassSummary, Run

INK = "#0a0b0c"  # stands for the page's text colour until `to_svg` replaces it
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#64748b")
HEAT = LinearSegmentedColormap.from_list("heat", ["#dbeafe", "#60a5fa", "#1d4ed8", "#172554"])
RASTER_ABOVE = 2000  # dots; beyond, a picture of them is smaller than their outlines
STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a layer's name is text, whatever dollar signs are in it
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "tvm_dynprune",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def name_run(run: Run) -> str:
    """Return what legends and headings call a run."""
    point = "" if run.point is None else f", {run.point}"
    return f"{run.network} on {run.soc} ({run.lowering}){point}"


def to_svg(figure: Figure, prefix: str) -> str:
    """Return `figure` as an ``<svg>`` element that refers to nothing outside itself.

    `prefix` goes before every id: ids are one name space for the whole page.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg, count=2)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    # A width and height in points would keep the browser from scaling it.
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\w. ]*?)(\d+)px [^;\"]*", r"font: \1\2px inherit", svg)
    return svg.replace(INK, "currentColor").replace("px inherit", "px system-ui, sans-serif")


def plot_operating_points(runs: Sequence[Run], prefix: str) -> str:
    """Accuracy against MACs, and against median latency; one line per run, a ring where it ran."""
    with style():
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        by_macs, by_latency = figure.subplots(1, 2, sharey=True)
        for run, colour in zip(runs, cycle(len(runs)), strict=True):
            points = sorted(run.points or [], key=lambda point: point.median_ms)
            accuracy = [100 * point.accuracy for point in points]
            mega_macs = [run.macs_dense * (1 - point.mac_cut) / 1e6 for point in points]
            latency_ms = [point.median_ms for point in points]
            order = np.argsort(mega_macs)
            line = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.5}
            by_macs.plot(np.take(mega_macs, order), np.take(accuracy, order), **line)
            by_latency.plot(latency_ms, accuracy, label=name_run(run), **line)
            for point, x, y, ms in zip(points, mega_macs, accuracy, latency_ms, strict=True):
                if point.threshold_shift == 0:
                    ring = {"s": 90, "facecolors": "none", "edgecolors": colour, "linewidths": 1.5}
                    by_macs.scatter([x], [y], **ring)
                    by_latency.scatter([ms], [y], **ring)
            if run.latency_dense_ms:
                _mark(by_latency, float(np.median(run.latency_dense_ms)), colour, vertical=True)
            _mark(by_macs, run.macs_dense / 1e6, colour, vertical=True)
        by_macs.set(xlabel="million MACs per image", ylabel="accuracy, %", title="by MACs")
        by_latency.set(xlabel="median latency, ms", title="by latency")
        for axes in (by_macs, by_latency):
            axes.set_xlim(left=0)
        if len(runs) > 1:
            by_latency.legend()
        return to_svg(figure, prefix)


def plot_latency(run: Run, prefix: str) -> str:
    """Cost against open fraction, a dot per image, with the median of each twentieth."""
    with style():
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        axes = figure.subplots()
        x, y = 100 * np.array(run.open_fraction), np.array(run.cost)
        # One hiccup of the system must not press all other dots into a line.
        top = max(float(np.percentile(y, 99)) * 1.25, float(np.median(run.cost_dense or [0])))
        dots = {"s": 9, "alpha": 0.35, "linewidths": 0, "rasterized": len(x) > RASTER_ABOVE}
        axes.scatter(x, y, color=COLOURS[0], label="one image", **dots)
        order = np.argsort(x)
        parts = np.array_split(order, min(20, max(1, len(x) // 10)))
        centres = [float(np.median(x[part])) for part in parts]
        medians = [float(np.median(y[part])) for part in parts]
        axes.plot(centres, medians, color=COLOURS[1], linewidth=2, label="median of neighbours")
        if run.cost_dense:
            dense = float(np.median(run.cost_dense))
            _mark(axes, dense, COLOURS[5], vertical=False, label="all open: dense, median")
        ylabel = "latency, ms" if run.latency_ms else run.cost_unit
        axes.set(xlabel="open fraction of this image, %", ylabel=ylabel)
        axes.set_ylim(0, top * 1.08)
        hidden = int((y > top * 1.08).sum())
        if hidden:
            axes.set_title(
                f"{hidden} slower images above the frame", fontweight="normal", loc="right"
            )
        axes.legend(loc="lower right")
        return to_svg(figure, prefix)


def plot_layers_by_class(run: Run, prefix: str) -> str:
    """Heat map of the open fraction: a row per gated layer, a column per class and for all."""
    gates = run.gates
    columns = ["all images"]
    table = [[gate.open_fraction] for gate in gates]
    if all(gate.open_fraction_by_class is not None for gate in gates):
        columns += run.classes
        table = [[gate.open_fraction, *(gate.open_fraction_by_class or [])] for gate in gates]
    values = 100 * np.array(table)
    with style({"axes.grid": False}):
        width = min(9.0, 2.6 + 0.62 * len(columns))
        figure = Figure(figsize=(width, 1.3 + 0.3 * len(gates)), layout="constrained")
        axes = figure.subplots()
        mesh = axes.pcolormesh(values, cmap=HEAT, vmin=0, vmax=100, edgecolors="none")
        axes.invert_yaxis()
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=35, ha="right")
        axes.set_yticks(np.arange(len(gates)) + 0.5, [gate.name for gate in gates])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if values.size <= 400:
            for (row, column), value in np.ndenumerate(values):
                colour = "white" if value > 45 else "#172554"
                position = (column + 0.5, row + 0.5)
                axes.text(*position, f"{value:.0f}", color=colour, ha="center", va="center", size=8)
        bar = figure.colorbar(mesh, ax=axes, label="open, %", fraction=0.04, pad=0.02)
        bar.outline.set_visible(False)  # type: ignore[operator]
        return to_svg(figure, prefix)


def plot_groups(run: Run, prefix: str) -> str:
    """Bars of every gate's open fraction by group, a small plot per gate."""
    columns = min(3, len(run.gates))
    rows = -(-len(run.gates) // columns)
    with style({"axes.grid.axis": "y", "font.size": 9}):
        figure = Figure(figsize=(9, 0.4 + 1.45 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, gate in zip(grid.flat, run.gates, strict=False):
            values = 100 * np.array(gate.open_fraction_by_group)
            axes.bar(np.arange(gate.groups), values, width=0.8, color=COLOURS[0])
            axes.axhline(100 * gate.open_fraction, color=COLOURS[1], linewidth=1)
            title = f"{gate.name}  ({gate.groups} groups of {gate.group_size})"
            axes.set_title(title, fontsize=8.5, loc="left")
            axes.set_ylim(0, 100)
            axes.set_yticks([0, 50, 100])
            axes.set_xticks(sorted({0, gate.groups - 1}))
        for axes in grid.flat[len(run.gates) :]:
            axes.set_visible(False)
        figure.supylabel("open, % of images", fontsize=9)
        return to_svg(figure, prefix)


def plot_classes(classes: Sequence[ClassSummary], macs_dense: int, prefix: str) -> str:
    """Bars of the share of dense MACs that each class executes, cheapest on top."""
    with style({"axes.grid.axis": "x"}):
        figure = Figure(figsize=(9, 0.8 + 0.27 * len(classes)), layout="constrained")
        axes = figure.subplots()
        share = [100 * summary.macs / macs_dense for summary in classes]
        axes.barh([summary.name for summary in classes], share, height=0.7, color=COLOURS[0])
        for row, value in enumerate(share):
            axes.text(value + 0.6, row, f"{value:.1f} %", va="center", size=8.5)
        axes.invert_yaxis()
        axes.set(xlabel="MACs executed, % of dense", xlim=(0, max(share) * 1.12))
        axes.tick_params(axis="y", length=0)
        return to_svg(figure, prefix)


def plot_images(run: Run, prefix: str) -> str:
    """Histogram of the share of dense MACs that each image executes."""
    with style({"axes.grid.axis": "y"}):
        figure = Figure(figsize=(9, 2.6), layout="constrained")
        axes = figure.subplots()
        share = 100 * np.array(run.macs) / run.macs_dense
        axes.hist(share, bins=min(40, max(5, len(share) // 10)), color=COLOURS[0], rwidth=0.92)
        _mark(axes, float(share.mean()), COLOURS[1], vertical=True, label="mean")
        axes.set(xlabel="MACs executed, % of dense", ylabel="images")
        axes.legend()
        return to_svg(figure, prefix)


def _mark(axes: Axes, value: float, colour: str, *, vertical: bool, label: str = "") -> None:
    """Draw a dashed line where the dense network stands."""
    draw = axes.axvline if vertical else axes.axhline
    draw(value, color=colour, linewidth=1, linestyle=(0, (4, 3)), label=label or "_")


def style(changes: dict[str, Any] | None = None) -> AbstractContextManager[None]:
    """Return a context in which matplotlib draws as the page does, but for `changes`."""
    settings: Any = STYLE | (changes or {})  # matplotlib types the keys as literals
    return mpl.rc_context(settings)


def cycle(count: int) -> list[str]:
    """Return as many colours, repeated where there are more than `COLOURS`."""
    return [COLOURS[index % len(COLOURS)] for index in range(count)]
