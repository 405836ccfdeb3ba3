# SPDX-License-Identifier: Apache-2.0
"""The page's sections about runs: real images through compiled networks."""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from tvm_dynprune.report import plots
from tvm_dynprune.report.html_parts import error, number, percent, plot, table
from tvm_dynprune.report.measurement import ClassSummary, Run, summarise_classes

EXTREMES = 5  # images in each of the tables of cheapest and most expensive ones


def run_tiles(run: Run) -> str:
    """Return the headline figures of one run, large."""
    gated, dense = np.median(run.cost), np.median(run.cost_dense or [np.nan])
    tiles = [
        ("accuracy", percent(run.accuracy), f"{run.images:,} images"),
        ("MAC cut", percent(run.mac_cut), f"of {run.macs_dense / 1e6:,.1f} million"),
        (f"{_measure(run)}, median", _cost(run, float(gated)), f"dense {_cost(run, float(dense))}"),
        ("realised fraction", number(run.realised_fraction), "of the MAC cut was really saved"),
    ]
    if run.cost_dense:
        tiles.insert(2, ("speed-up", f"{dense / gated:.2f}×", "dense over gated, medians"))
    shown = [
        f'<div class="tile"><span>{name}</span><b>{value}</b><span>{note}</span></div>'
        for name, value, note in tiles
        if value != "–"
    ]
    return f'<div class="tiles">{"".join(shown)}</div>'


def headline(runs: Sequence[Run]) -> str:
    """Return a table of all runs side by side."""
    rows: list[tuple[str, Callable[[Run], str]]] = [
        ("lowering", lambda run: escape(run.lowering)),
        ("threads", lambda run: str(run.threads)),
        ("images", lambda run: f"{run.images:,}"),
        ("accuracy", lambda run: percent(run.accuracy)),
        ("open fraction, mean", lambda run: percent(float(np.mean(run.open_fraction)))),
        ("MAC cut", lambda run: percent(run.mac_cut)),
        ("gated, median", lambda run: _cost(run, float(np.median(run.cost)))),
        ("gated, p95", lambda run: _cost(run, float(np.percentile(run.cost, 95)))),
        ("dense, median", lambda run: _dense(run, 50)),
        ("dense, p95", lambda run: _dense(run, 95)),
        ("gated ÷ dense, median", lambda run: _ratio(run, 50)),
        ("gated ÷ dense, p95", lambda run: _ratio(run, 95)),
        ("realised fraction", lambda run: number(run.realised_fraction)),
        ("same class as the reference", _agreement),
        ("largest error, of the output scale", lambda run: error(run.max_abs_error)),
    ]
    header = "".join(f"<th>{_column(run)}</th>" for run in runs)
    lines = [
        f"<tr><th>{name}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>"
        for name, values in ((name, [show(run) for run in runs]) for name, show in rows)
        if any(value != "–" for value in values)
    ]
    return (
        "<h2>At a glance</h2>\n"
        '<p class="soft">Realised fraction: (1 − gated ÷ dense time) ÷ MAC cut, both from this '
        "engine in one run. 1.00 means that the whole saving in work arrived as time.</p>\n"
        f'<div class="card"><table><thead><tr><th></th>{header}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _column(run: Run) -> str:
    parts = (run.network, run.soc, *([] if run.point is None else [run.point]))
    return "<br>".join(escape(part) for part in parts)


def operating_points(runs: Sequence[Run]) -> str:
    """Return the section that shows thresholds moved, or nothing without such runs."""
    if not runs:
        return ""
    return (
        "<h2>Accuracy against cost</h2>\n"
        '<p class="soft">The same library with its thresholds moved: no recompiling. A ring marks '
        "the thresholds as trained, a dashed line the cost of the dense network.</p>\n"
        + plot(plots.plot_operating_points(runs, "points"))
    )


def run_sections(run: Run, prefix: str, *, several: bool) -> str:
    """Return the sections about one run; `prefix` makes the ids in them unique."""
    heading = f": {escape(plots.name_run(run))}" if several else ""
    parts = [
        f"<h2>{_measure(run).capitalize()} of each input{heading}</h2>",
        '<p class="soft">Easy inputs open fewer channels, and cost less.</p>',
        plot(plots.plot_latency(run, f"{prefix}-latency")),
    ]
    if run.gates:
        parts += [
            f"<h2>Where gates open{heading}</h2>",
            '<p class="soft">Open fraction in percent, by gated layer and class.</p>',
            plot(plots.plot_layers_by_class(run, f"{prefix}-layers")),
            '<p class="soft">How often each channel group opens; the line is the layer\'s mean. '
            "Groups that are never or always open are decided for good, not by the input.</p>",
            plot(plots.plot_groups(run, f"{prefix}-groups")),
        ]
    classes = summarise_classes(run)
    by = "label" if run.labels is not None else "predicted class"
    parts += [
        f"<h2>Easiest and hardest classes{heading}</h2>",
        f'<p class="soft">By {by}, cheapest first.</p>',
        plot(plots.plot_classes(classes, run.macs_dense, f"{prefix}-classes")),
        _class_table(run, classes),
    ]
    if len(set(run.macs)) > 1:
        parts += [
            f"<h2>Which images use how much{heading}</h2>",
            '<p class="soft">The share of the dense MACs that each image executes, and the images '
            "at both ends; an image's index is its place in the data that was run.</p>",
            plot(plots.plot_images(run, f"{prefix}-images")),
            _image_table(run),
        ]
    return "\n".join(parts)


def _class_table(run: Run, classes: Sequence[ClassSummary]) -> str:
    header = ("class", "images", "accuracy", "open fraction", "MACs", "median cost")
    rows = [
        (
            escape(one.name),
            str(one.images),
            percent(one.accuracy),
            percent(one.open_fraction),
            f"{one.macs / 1e6:,.2f} M",
            _cost(run, one.median_cost),
        )
        for one in classes
    ]
    return table(header, rows)


def _image_table(run: Run) -> str:
    """Return a table of the cheapest images and the most expensive ones."""
    order = np.argsort(run.macs, kind="stable")
    count = min(EXTREMES, len(order) // 2)
    labelled = run.labels is not None
    header = ("", "image", *(["label"] if labelled else []), "prediction", "MACs", _measure(run))
    rows = []
    for heading, indices in (("cheapest", order[:count]), ("most expensive", order[-count:])):
        for place, index in enumerate(indices):
            label = [] if run.labels is None else [escape(run.classes[run.labels[index]])]
            prediction = escape(run.classes[run.predictions[index]])
            wrong = run.labels is not None and run.labels[index] != run.predictions[index]
            rows.append(
                (
                    heading if place == 0 else "",
                    str(index),
                    *label,
                    f"<b>{prediction}</b>" if wrong else prediction,
                    percent(run.macs[index] / run.macs_dense),
                    _cost(run, run.cost[index]),
                )
            )
    return table(header, rows)


def _measure(run: Run) -> str:
    return "latency" if run.latency_ms else "instructions"


def _cost(run: Run, value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3g} {run.cost_unit}"


def _dense(run: Run, percentile: int) -> str:
    if not run.cost_dense:
        return "–"
    return _cost(run, float(np.percentile(run.cost_dense, percentile)))


def _ratio(run: Run, percentile: int) -> str:
    if not run.cost_dense:
        return "–"
    gated = np.percentile(run.cost, percentile)
    return f"{gated / np.percentile(run.cost_dense, percentile):.2f}"


def _agreement(run: Run) -> str:
    if run.agreement is None:
        return "–"
    one = run.agreement
    return f"{one.equal:,} of {one.of:,} <small>({escape(one.reference)})</small>"
