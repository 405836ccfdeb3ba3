# SPDX-License-Identifier: Apache-2.0
"""The report's plots of trainings, and of accuracy against MAC cut."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from tvm_dynprune.report.plots import COLOURS, HEAT, INK, cycle, style, to_svg
from tvm_dynprune.report.records import Record
from tvm_dynprune.report.tradeoff import Curve, Setting, Tradeoff
from tvm_dynprune.report.training import Training

LOWEST = -2.0  # points; a frame down to the end of every sweep would press all else together
SIDES = [(1, 0), (-1, 0), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7), (0, 1), (0, -1)]
DISTANCES = (8, 16, 26, 38, 52)  # points between a label and what it names

# Fields of an epoch that stand in one panel, with what its legend calls them.
ACCURACIES = {
    "validation_accuracy": "as trained",
    "validation_accurate_accuracy": "thresholds lowered",
}
SHARES = {
    "validation_mac_cut": "MAC cut",
    "validation_accurate_mac_cut": "MAC cut, lowered",
    "validation_open_fraction": "open groups",
    "validation_latency_fraction": "expected latency",
}


def plot_tradeoff(tradeoff: Tradeoff, records: Sequence[Record], prefix: str) -> str:
    """Change of accuracy against MAC cut: curves, rings where they have names, records as diamonds.

    A dashed line is a dense training.
    """
    with style():
        figure = Figure(figsize=(9, 5.8), layout="constrained")
        axes = figure.subplots()
        labels = []
        shown = [curve for curve in tradeoff.curves if curve.baseline is not None]
        for curve, colour in zip(shown, cycle(len(shown)), strict=True):
            labels += _curve(axes, curve, colour)
        for name, change in tradeoff.dense.items():
            axes.axhline(change, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=name)
        if not tradeoff.dense:
            axes.axhline(0, color=INK, linewidth=0.8)
        for record in records:
            axes.scatter([record.mac_cut], [record.change], marker="D", s=26, color=COLOURS[5])
            text = f"{record.method} {record.network}, {record.year}"
            labels.append(_label(axes, text, record.mac_cut, record.change, INK))
        _frame(axes, shown, [*(record.change for record in records), *tradeoff.dense.values()])
        axes.set(xlabel="MAC cut, %", ylabel="change of accuracy, points")
        if shown or tradeoff.dense:
            axes.legend(loc="lower left")
        _place(figure, axes, labels)
        return to_svg(figure, prefix)


def _curve(axes: Axes, curve: Curve, colour: str) -> list[Annotation]:
    """Draw a curve and rings around its named settings; return the names as labels to place."""
    x, y = _coordinates(curve, curve.settings)
    line: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.5}
    axes.plot(x, y, label=curve.name, **line)
    if curve.marked == curve.settings:
        return []
    labels = []
    for setting in curve.marked:
        at = _coordinates(curve, [setting])
        axes.scatter(*at, s=90, facecolors="none", edgecolors=colour, linewidths=1.5)
        labels.append(_label(axes, setting.name, at[0][0], at[1][0], colour))
    return labels


def _coordinates(curve: Curve, settings: Sequence[Setting]) -> tuple[list[float], list[float]]:
    assert curve.baseline is not None
    x = [100 * setting.mac_cut for setting in settings]
    return x, [curve.baseline.change(setting.accuracy) for setting in settings]


def _label(axes: Axes, text: str, x: float, y: float, colour: str) -> Annotation:
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
    return axes.annotate(
        text,
        (x, y),
        (DISTANCES[0], 0),
        textcoords="offset points",
        va="center",
        size=8,
        color=colour,
        arrowprops=line,
    )


def _frame(axes: Axes, curves: Sequence[Curve], others: Sequence[float]) -> None:
    """Limit the axes to what matters: no sweep's end far below, but something of every curve."""
    heights = [_coordinates(curve, curve.settings)[1] for curve in curves]
    values = [*others, *(y for curve in heights for y in curve), 0.0]
    needed = min([LOWEST, *others, *(max(curve) for curve in heights)])
    bottom = max(min(values), needed)
    margin = 0.08 * (max(values) - bottom) or 1.0
    axes.set_ylim(bottom - margin, max(values) + margin)
    hidden = sum(y < bottom - margin for curve in heights for y in curve)
    if hidden:
        text = f"{hidden} settings below the frame"
        axes.set_title(text, fontweight="normal", loc="right")
    # Room for the labels at both sides.
    left, right = axes.get_xlim()
    axes.set_xlim(left - 0.06 * (right - left), min(right + 0.12 * (right - left), 100))


def _place(figure: Figure, axes: Axes, labels: Sequence[Annotation]) -> None:
    """Move each label to where it covers least of other labels, points and lines, and is near."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    frame = axes.get_window_extent()
    named = np.array([label.xy for label in labels]).reshape(-1, 2)
    lines = [_along(line) for line in axes.get_lines()]
    taken = np.concatenate([axes.transData.transform(named), *lines])
    boxes = [] if (legend := axes.get_legend()) is None else [legend.get_window_extent()]
    for label in labels:
        best = (np.inf, 0.0, 0.0)
        for distance in DISTANCES:
            for right, up in SIDES:
                box = _move(label, distance * right, distance * up)
                outside = box.x0 < frame.x0 or box.x1 > frame.x1 or not frame.y0 < box.y0 < frame.y1
                overlaps = sum(box.overlaps(other) for other in boxes)
                near = box.padded(2)
                covered = np.all((taken >= near.min) & (taken <= near.max), axis=1).sum()
                cost = 50 * outside + 20 * overlaps + min(int(covered), 10) + distance / 10
                best = min(best, (cost, distance * right, distance * up))
        boxes.append(_move(label, *best[1:]))
        if label.arrow_patch is not None:  # a line to what is beside the label says nothing
            label.arrow_patch.set_visible(np.hypot(*best[1:]) > DISTANCES[0])


def _move(label: Annotation, x: float, y: float) -> Bbox:
    """Put a label at an offset in points from what it names; return where its text is then."""
    side = "left" if x > 0 else "right" if x < 0 else "center"
    label.set(position=(x, y), horizontalalignment=side)
    return Text.get_window_extent(label)  # an annotation's own extent is with the line to its point


def _along(line: Line2D) -> np.ndarray:
    """Positions on the screen, some pixels apart, along a line of any kind."""
    ends = line.get_transform().transform(line.get_xydata())
    parts = [np.linspace(a, b, 40) for a, b in zip(ends, ends[1:], strict=False)]
    return np.concatenate(parts) if parts else ends


def plot_epochs(training: Training, prefix: str) -> str:
    """Loss, validation accuracy and, with gates, MAC cut over the epochs."""
    panels = [("loss", {"loss": ""}), ("accuracy, %", ACCURACIES), ("share, %", SHARES)]
    panels = [
        (ylabel, found)
        for ylabel, fields in panels
        if (found := {f: label for f, label in fields.items() if _has(training, f)})
    ]
    with style():
        figure = Figure(figsize=(9, 2.9), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False)
        for axes, (ylabel, fields) in zip(grid.flat, panels, strict=True):
            _lines(axes, training, fields, 1.0 if ylabel == "loss" else 100.0)
            axes.set(xlabel="epoch", ylabel=ylabel)
        return to_svg(figure, prefix)


def _has(training: Training, field: str) -> bool:
    return any(getattr(epoch, field) is not None for epoch in training.history)


def _lines(axes: Axes, training: Training, fields: dict[str, str], scale: float) -> None:
    """Draw a line per field over the epochs that have it."""
    for (field, label), colour in zip(fields.items(), COLOURS, strict=False):
        epochs = [epoch for epoch in training.history if getattr(epoch, field) is not None]
        values = [scale * getattr(epoch, field) for epoch in epochs]
        line: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 3, "linewidth": 1.5}
        axes.plot([epoch.epoch for epoch in epochs], values, label=label or "_", **line)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(fields) > 1:
        axes.legend()


def plot_gates_over_training(training: Training, prefix: str) -> str:
    """Heat map of the open fraction: a row per gated layer, a column per epoch."""
    gates = gate_names(training)
    epochs = [epoch for epoch in training.history if epoch.gates]
    rows = [[(epoch.gates or {}).get(gate, np.nan) for epoch in epochs] for gate in gates]
    values = 100 * np.array(rows)
    with style({"axes.grid": False}):
        figure = Figure(figsize=(9, 1.3 + 0.26 * len(gates)), layout="constrained")
        axes = figure.subplots()
        mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=HEAT, vmin=0, vmax=100)
        axes.invert_yaxis()
        step = -(-len(epochs) // 20)
        ticks = np.arange(0, len(epochs), step)
        axes.set_xticks(ticks + 0.5, [str(epochs[tick].epoch) for tick in ticks])
        axes.set_yticks(np.arange(len(gates)) + 0.5, gates)
        axes.set(xlabel="epoch")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, label="open, %", fraction=0.04, pad=0.02)
        bar.outline.set_visible(False)  # type: ignore[operator]
        return to_svg(figure, prefix)


def gate_names(training: Training) -> list[str]:
    """Names of all gates that any epoch tells of, in the order of their first mention."""
    return list(dict.fromkeys(name for epoch in training.history for name in epoch.gates or {}))
