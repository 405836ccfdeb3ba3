# SPDX-License-Identifier: Apache-2.0
"""One HTML page from any number of measurement files, with everything it shows inside it."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from tvm_dynprune.errors import DataError
from tvm_dynprune.files import refuse_existing, write_atomic
from tvm_dynprune.report import plots
from tvm_dynprune.report.measurement import (
    Bench,
    ClassSummary,
    Engine,
    Provenance,
    Run,
    read_measurement,
    summarise_classes,
)

OURS = ("dynprune", "dynprune_dense")


def write_report(paths: Sequence[Path], out: Path, *, force: bool = False) -> None:
    """Write a self-contained HTML page that shows measurement files side by side.

    Parameters
    ----------
    paths
        Files that `run --json`, `demo` or `bench --json` wrote, shown in this order.
    out
        The page; written whole or not at all.
    force
        Overwrite `out` if it exists.

    Raises
    ------
    DataError
        There is no file, or one is no measurement.
    OutputExistsError
        `out` exists and `force` is false.
    """
    refuse_existing(out, force=force)
    if not paths:
        raise DataError("nothing to report: name at least one file that --json wrote")
    page = render_page([read_measurement(path) for path in paths])
    with write_atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_page(measurements: Sequence[Run | Bench]) -> str:
    """Return the HTML text of the page."""
    runs = [one for one in measurements if isinstance(one, Run)]
    benches = [one for one in measurements if isinstance(one, Bench)]
    networks = ", ".join(dict.fromkeys(one.network for one in measurements))
    socs = ", ".join(dict.fromkeys(one.soc for one in measurements))
    body = [
        f"<h1>{escape(networks)}</h1>",
        f'<p class="soft">Dynamic channel pruning, measured on {escape(socs)}</p>',
    ]
    if len(runs) == 1:
        body.append(_tiles(runs[0]))
    if runs:
        body.append(_headline(runs))
        body.append(_operating_points([run for run in runs if run.points]))
    for index, run in enumerate(runs):
        body.append(_run_sections(run, f"r{index}", several=len(runs) > 1))
    body += [_bench_section(bench) for bench in benches]
    body.append(_provenance(measurements))
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(networks)}: dynamic channel pruning</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _tiles(run: Run) -> str:
    gated, dense = np.median(run.cost), np.median(run.cost_dense or [np.nan])
    tiles = [
        ("accuracy", _percent(run.accuracy), f"{run.images:,} images"),
        ("MAC cut", _percent(run.mac_cut), f"of {run.macs_dense / 1e6:,.1f} million"),
        (f"{_measure(run)}, median", _cost(run, float(gated)), f"dense {_cost(run, float(dense))}"),
        ("realised fraction", _number(run.realised_fraction), "of the MAC cut was really saved"),
    ]
    if run.cost_dense:
        tiles.insert(2, ("speed-up", f"{dense / gated:.2f}×", "dense over gated, medians"))
    shown = [
        f'<div class="tile"><span>{name}</span><b>{value}</b><span>{note}</span></div>'
        for name, value, note in tiles
        if value != "–"
    ]
    return f'<div class="tiles">{"".join(shown)}</div>'


def _headline(runs: Sequence[Run]) -> str:
    rows: list[tuple[str, Callable[[Run], str]]] = [
        ("lowering", lambda run: escape(run.lowering)),
        ("threads", lambda run: str(run.threads)),
        ("images", lambda run: f"{run.images:,}"),
        ("accuracy", lambda run: _percent(run.accuracy)),
        ("open fraction, mean", lambda run: _percent(float(np.mean(run.open_fraction)))),
        ("MAC cut", lambda run: _percent(run.mac_cut)),
        ("gated, median", lambda run: _cost(run, float(np.median(run.cost)))),
        ("gated, p95", lambda run: _cost(run, float(np.percentile(run.cost, 95)))),
        ("dense, median", lambda run: _dense(run, 50)),
        ("dense, p95", lambda run: _dense(run, 95)),
        ("gated ÷ dense, median", lambda run: _ratio(run, 50)),
        ("gated ÷ dense, p95", lambda run: _ratio(run, 95)),
        ("realised fraction", lambda run: _number(run.realised_fraction)),
        ("same class as the reference", _agreement),
        ("largest error, of the output scale", lambda run: _error(run.max_abs_error)),
    ]
    header = "".join(f"<th>{escape(run.network)}<br>{escape(run.soc)}</th>" for run in runs)
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


def _operating_points(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    return (
        "<h2>Accuracy against cost</h2>\n"
        '<p class="soft">The same library with its thresholds moved: no recompiling. A ring marks '
        "the thresholds as trained, a dashed line the cost of the dense network.</p>\n"
        + _plot(plots.plot_operating_points(runs, "points"))
    )


def _run_sections(run: Run, prefix: str, *, several: bool) -> str:
    heading = f": {escape(plots.name_run(run))}" if several else ""
    parts = [
        f"<h2>{_measure(run).capitalize()} of each input{heading}</h2>",
        '<p class="soft">Easy inputs open fewer channels, and cost less.</p>',
        _plot(plots.plot_latency(run, f"{prefix}-latency")),
    ]
    if run.gates:
        parts += [
            f"<h2>Where gates open{heading}</h2>",
            '<p class="soft">Open fraction in percent, by gated layer and class.</p>',
            _plot(plots.plot_layers_by_class(run, f"{prefix}-layers")),
            '<p class="soft">How often each channel group opens; the line is the layer\'s mean. '
            "Groups that are never or always open are decided for good, not by the input.</p>",
            _plot(plots.plot_groups(run, f"{prefix}-groups")),
        ]
    classes = summarise_classes(run)
    by = "label" if run.labels is not None else "predicted class"
    parts += [
        f"<h2>Easiest and hardest classes{heading}</h2>",
        f'<p class="soft">By {by}, cheapest first.</p>',
        _plot(plots.plot_classes(classes, run.macs_dense, f"{prefix}-classes")),
        _class_table(run, classes),
    ]
    return "\n".join(parts)


def _class_table(run: Run, classes: Sequence[ClassSummary]) -> str:
    rows = "".join(
        f"<tr><th>{escape(one.name)}</th><td>{one.images}</td><td>{_percent(one.accuracy)}</td>"
        f"<td>{_percent(one.open_fraction)}</td><td>{one.macs / 1e6:,.2f} M</td>"
        f"<td>{_cost(run, one.median_cost)}</td></tr>"
        for one in classes
    )
    return (
        '<div class="card"><table><thead><tr><th>class</th><th>images</th><th>accuracy</th>'
        "<th>open fraction</th><th>MACs</th><th>median cost</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _bench_section(bench: Bench) -> str:
    facts = [
        ("MAC cut", _percent(bench.mac_cut)),
        ("open fraction", _percent(bench.open_fraction)),
        ("against our dense", _times(bench.speedup_vs_dense)),
        ("against the fastest other engine", _times(bench.speedup_vs_best_peer)),
        ("realised fraction", _number(bench.realised_fraction)),
        ("largest error", _error(bench.max_abs_error)),
    ]
    slowest = max(engine.median_ms for engine in bench.engines.values())
    ranked = sorted(bench.engines.items(), key=lambda item: item[1].median_ms)
    rows = "".join(_engine_row(name, engine, slowest) for name, engine in ranked)
    threads = "1 thread" if bench.threads == 1 else f"{bench.threads} threads"
    return (
        f"<h2>Benchmark: {escape(bench.network)} on {escape(bench.soc)}, {threads}</h2>\n"
        f'<p class="soft">{" · ".join(f"{name} {value}" for name, value in facts if value != "–")}'
        '</p>\n<div class="card"><table><thead><tr><th>engine</th><th>median</th><th>p95</th>'
        '<th>range</th><th>runs</th><th class="bar"></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _engine_row(name: str, engine: Engine, slowest_ms: float) -> str:
    width = 100 * engine.median_ms / slowest_ms if slowest_ms > 0 else 0
    spread = "–"
    if engine.min_ms is not None and engine.max_ms is not None:
        spread = f"{engine.min_ms:.3g} to {_ms(engine.max_ms)}"
    ours = ' class="ours"' if name in OURS else ""
    return (
        f"<tr{ours}><th>{escape(name)}</th><td>{_ms(engine.median_ms)}</td>"
        f"<td>{_ms(engine.p95_ms)}</td><td>{spread}</td><td>{engine.runs:,}</td>"
        f'<td class="bar"><span class="track" style="width:{width:.1f}%"></span></td></tr>'
    )


def _provenance(measurements: Sequence[Run | Bench]) -> str:
    cards = []
    for one in measurements:
        source: Provenance = one.provenance
        versions = ", ".join(f"{name} {text}" for name, text in source.versions.items())
        facts = [
            ("machine", escape(source.machine)),
            ("date", escape(source.date)),
            ("command", f"<code>{escape(source.command)}</code>"),
            ("versions", escape(versions)),
            ("seed", "none" if source.seed is None else str(source.seed)),
        ]
        items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
        title = f"{escape(one.network)} on {escape(one.soc)}"
        cards.append(f'<div class="card"><h3>{title}</h3><dl>{items}</dl></div>')
    return "<h2>Where the numbers come from</h2>\n" + "\n".join(cards)


def _plot(svg: str) -> str:
    return f'<div class="card plot">{svg}</div>'


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def _error(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def _measure(run: Run) -> str:
    return "latency" if run.latency_ms else "instructions"


def _cost(run: Run, value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3g} {run.cost_unit}"


def _ms(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3g} ms"


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
