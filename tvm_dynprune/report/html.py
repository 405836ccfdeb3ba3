# SPDX-License-Identifier: Apache-2.0
"""One HTML page from any number of measurement files, with everything it shows inside it."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from tvm_dynprune.errors import DataError
from tvm_dynprune.files import refuse_existing, write_atomic
from tvm_dynprune.report.html_parts import error, facts, ms, number, percent, times
from tvm_dynprune.report.html_run import headline, operating_points, run_sections, run_tiles
from tvm_dynprune.report.html_training import (
    calibration_section,
    tradeoff_section,
    training_sections,
)
from tvm_dynprune.report.inputs import Input, read_input
from tvm_dynprune.report.measurement import Bench, Calibration, Engine, Run
from tvm_dynprune.report.training import Training

OURS = ("dynprune", "dynprune_dense")


def write_report(paths: Sequence[Path], out: Path, *, force: bool = False) -> None:
    """Write a self-contained HTML page that shows measurements and trainings side by side.

    Parameters
    ----------
    paths
        Files that `run`, `demo`, `bench` or `calibrate` wrote as JSON, and trainings: the
        checkpoint folders of `train`, their ``checkpoint.json`` or a ``log.jsonl`` alone. Shown in
        this order.
    out
        The page; written whole or not at all.
    force
        Overwrite `out` if it exists.

    Raises
    ------
    DataError
        There is no file, or one is neither a measurement nor a training.
    OutputExistsError
        `out` exists and `force` is false.
    """
    refuse_existing(out, force=force)
    if not paths:
        raise DataError(
            "nothing to report: name at least one file that --json wrote, or a checkpoint folder"
        )
    page = render_page([read_input(path) for path in paths])
    with write_atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_page(inputs: Sequence[Input]) -> str:
    """Return the HTML text of the page."""
    runs = [one for one in inputs if isinstance(one, Run)]
    trainings = [one for one in inputs if isinstance(one, Training)]
    names = [
        one.network or one.name if isinstance(one, Training) else one.network for one in inputs
    ]
    networks = ", ".join(dict.fromkeys(names))
    socs = ", ".join(dict.fromkeys(one.soc for one in inputs if isinstance(one, Run | Bench)))
    done = f"measured on {socs}" if socs else "in training" if trainings else "calibrated"
    body = [
        f"<h1>{escape(networks)}</h1>",
        f'<p class="soft">Dynamic channel pruning, {escape(done)}</p>',
    ]
    if len(runs) == 1:
        body.append(run_tiles(runs[0]))
    if any(isinstance(one, Training | Calibration) for one in inputs):
        body.append(tradeoff_section(inputs))
    for index, training in enumerate(trainings):
        body.append(training_sections(training, f"t{index}"))
    body += [calibration_section(one) for one in inputs if isinstance(one, Calibration)]
    if runs:
        body.append(headline(runs))
        body.append(operating_points([run for run in runs if run.points]))
    for index, run in enumerate(runs):
        body.append(run_sections(run, f"r{index}", several=len(runs) > 1))
    body += [_bench_section(one) for one in inputs if isinstance(one, Bench)]
    body.append(_provenance(inputs))
    return _document(networks, [part for part in body if part])


def _document(networks: str, body: Sequence[str]) -> str:
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(networks)}: dynamic channel pruning</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _bench_section(bench: Bench) -> str:
    figures = [
        ("MAC cut", percent(bench.mac_cut)),
        ("open fraction", percent(bench.open_fraction)),
        ("against our dense", times(bench.speedup_vs_dense)),
        ("against the fastest other engine", times(bench.speedup_vs_best_peer)),
        ("realised fraction", number(bench.realised_fraction)),
        ("largest error", error(bench.max_abs_error)),
    ]
    slowest = max(engine.median_ms for engine in bench.engines.values())
    ranked = sorted(bench.engines.items(), key=lambda item: item[1].median_ms)
    rows = "".join(_engine_row(name, engine, slowest) for name, engine in ranked)
    shown = " · ".join(f"{name} {value}" for name, value in figures if value != "–")
    threads = "1 thread" if bench.threads == 1 else f"{bench.threads} threads"
    return (
        f"<h2>Benchmark: {escape(bench.network)} on {escape(bench.soc)}, {threads}</h2>\n"
        f'<p class="soft">{shown}</p>\n<div class="card"><table><thead><tr><th>engine</th>'
        "<th>median</th><th>p95</th><th>range</th><th>runs</th>"
        '<th class="bar"></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _engine_row(name: str, engine: Engine, slowest_ms: float) -> str:
    width = 100 * engine.median_ms / slowest_ms if slowest_ms > 0 else 0
    spread = "–"
    if engine.min_ms is not None and engine.max_ms is not None:
        spread = f"{engine.min_ms:.3g} to {ms(engine.max_ms)}"
    ours = ' class="ours"' if name in OURS else ""
    return (
        f"<tr{ours}><th>{escape(name)}</th><td>{ms(engine.median_ms)}</td>"
        f"<td>{ms(engine.p95_ms)}</td><td>{spread}</td><td>{engine.runs:,}</td>"
        f'<td class="bar"><span class="track" style="width:{width:.1f}%"></span></td></tr>'
    )


def _provenance(inputs: Sequence[Input]) -> str:
    cards = []
    for one in inputs:
        if isinstance(one, Training):
            title, items = one.title, _training_facts(one)
        else:
            on = "" if isinstance(one, Calibration) else f" on {one.soc}"
            title, items = f"{one.network}{on}", _measurement_facts(one)
        cards.append(f'<div class="card"><h3>{escape(title)}</h3>{facts(items)}</div>')
    return "<h2>Where the numbers come from</h2>\n" + "\n".join(cards)


def _measurement_facts(one: Run | Bench | Calibration) -> list[tuple[str, str]]:
    source = one.provenance
    return [
        ("machine", escape(source.machine)),
        ("date", escape(source.date)),
        ("command", f"<code>{escape(source.command)}</code>"),
        ("versions", escape(_versions(source.versions))),
        ("seed", "none" if source.seed is None else str(source.seed)),
    ]


def _training_facts(training: Training) -> list[tuple[str, str]]:
    seed = None if training.training is None else training.training.seed
    return [
        ("history", f"{len(training.history)} epochs, as <code>train</code> logged them"),
        ("versions", escape(_versions(training.versions or {})) or "not known"),
        ("seed", "not known" if seed is None else str(seed)),
    ]


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in versions.items())
