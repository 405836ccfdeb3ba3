# SPDX-License-Identifier: Apache-2.0
"""The page's sections about trainings and calibrations, and accuracy against MAC cut of all."""

from collections.abc import Sequence
from html import escape

from tvm_dynprune.report.html_parts import facts, link, percent, plot, points, table, wrapped
from tvm_dynprune.report.inputs import Input
from tvm_dynprune.report.measurement import Calibration, Run
from tvm_dynprune.report.plots_training import (
    gate_names,
    plot_epochs,
    plot_gates_over_training,
    plot_tradeoff,
)
from tvm_dynprune.report.records import Record, Records, read_records
from tvm_dynprune.report.tradeoff import Tradeoff, gather
from tvm_dynprune.report.training import Training


def tradeoff_section(inputs: Sequence[Input]) -> str:
    """Return the section with accuracy against MAC cut of all inputs, and of published results."""
    tradeoff = gather(inputs)
    records = read_records()
    published = records.record if _is_on_data_set(inputs, records) else []
    caption = (
        "The change of accuracy against a dense network, so that networks of different accuracy "
        "can be compared; up is more accurate, right is cheaper. Trainings and calibrations count "
        "from the most accurate dense training of their network here, on the validation images, "
        "and runs on the test images; where there is none, from what the table says. A training "
        "shows its last epoch, both ends joined if it was for a range of thresholds; rings are "
        "settings with a name."
    )
    if published:
        caption += (
            f" Diamonds are published results on {records.data_set.name}, each against its own "
            "dense network, on the test images."
        )
    parts = [
        "<h2>Accuracy against MAC cut</h2>",
        f'<p class="soft">{escape(caption)}</p>',
        plot(plot_tradeoff(tradeoff, published, "tradeoff")),
    ]
    if tradeoff.curves:
        parts.append(_settings_table(tradeoff))
    if published:
        parts.append(_records_table(published))
    return "\n".join(parts)


def _is_on_data_set(inputs: Sequence[Input], records: Records) -> bool:
    """Whether anything has the records' classes; a calibration or a bare log says nothing."""
    classes = [one.classes for one in inputs if isinstance(one, Training | Run) and one.classes]
    return not classes or any(set(one) == set(records.data_set.classes) for one in classes)


def _settings_table(tradeoff: Tradeoff) -> str:
    header = ("", "setting", "MAC cut", "accuracy", "change, points", "against")
    rows = []
    for curve in tradeoff.curves:
        for index, setting in enumerate(curve.marked):
            base = curve.baseline
            against = "–" if base is None else f"{percent(base.accuracy, 2)}, {base.name}"
            rows.append(
                (
                    wrapped(curve.name) if index == 0 else "",
                    wrapped(setting.name),
                    percent(setting.mac_cut),
                    percent(setting.accuracy, 2),
                    points(None if base is None else base.change(setting.accuracy)),
                    wrapped(against),
                )
            )
    return table(header, rows)


def _records_table(published: Sequence[Record]) -> str:
    header = ("published", "network", "year", "MAC cut", "accuracy", "change, points", "source")
    rows = [
        (
            escape(one.method) + (f" (by {escape(one.measured_by)})" if one.measured_by else ""),
            escape(one.network),
            str(one.year),
            f"{one.mac_cut:.1f} %",
            f"{one.accuracy_dense:.2f} → {one.accuracy:.2f} %",
            points(one.change),
            link(one.source),
        )
        for one in sorted(published, key=lambda one: -one.mac_cut)
    ]
    return table(header, rows)


def training_sections(training: Training, prefix: str) -> str:
    """Return the sections about one training; `prefix` makes the ids in them unique."""
    title = escape(training.title)
    parts = [
        f"<h2>Training: {title}</h2>",
        f'<div class="card">{facts(_training_facts(training))}</div>',
        plot(plot_epochs(training, f"{prefix}-epochs")),
    ]
    if gate_names(training):
        parts += [
            f"<h2>Gates over training: {title}</h2>",
            '<p class="soft">Open fraction of each gated layer on the validation images, in '
            "percent, after every epoch.</p>",
            plot(plot_gates_over_training(training, f"{prefix}-gates")),
        ]
    return "\n".join(parts)


def _training_facts(training: Training) -> list[tuple[str, str]]:
    last, options = training.last, training.training
    planned = None if options is None else options.epochs
    of = f" of {planned}" if planned is not None and planned != last.epoch else ""
    items = [
        ("epochs", f"{last.epoch}{of}"),
        ("validation", _result(last.validation_accuracy, last.validation_mac_cut)),
    ]
    if last.validation_accurate_accuracy is not None:
        lowered = _result(last.validation_accurate_accuracy, last.validation_accurate_mac_cut)
        items.append(("validation, thresholds lowered", lowered))
    if last.test_accuracy is not None:
        items.append(("test", _result(last.test_accuracy, last.test_mac_cut)))
    if last.test_accurate_accuracy is not None:
        lowered = _result(last.test_accurate_accuracy, last.test_accurate_mac_cut)
        items.append(("test, thresholds lowered", lowered))
    if options is not None and not training.is_dense and options.budget is not None:
        ends = [options.budget, options.accurate_budget]
        budgets = " to ".join(percent(end) for end in ends if end is not None)
        items.append(("budget", f"{budgets} of the dense MACs"))
    if options is not None and options.start is not None:
        distil = f", distilled with weight {options.distill:g}" if options.distill else ""
        items.append(("started from", f"{escape(options.start)}{distil}"))
    if seconds := sum(epoch.seconds or 0 for epoch in training.history):
        items.append(("time", f"{seconds / 60:,.0f} minutes"))
    return items


def _result(accuracy: float, mac_cut: float | None) -> str:
    cut = "" if mac_cut is None else f" at a MAC cut of {percent(mac_cut)}"
    return f"{percent(accuracy, 2)}{cut}"


def calibration_section(calibration: Calibration) -> str:
    """Return the section with a calibration's named points."""
    if not calibration.points:
        return ""
    header = ("point", "threshold shift", "accuracy", "MACs executed", "images")
    rows = [
        (
            escape(name),
            f"{point.threshold_shift:+.2f}".replace("-", "−"),
            percent(point.accuracy, 2),
            percent(point.mac_fraction),
            f"{point.images:,}",
        )
        for name, point in calibration.points.items()
    ]
    return f"<h2>Operating points: {escape(calibration.network)}</h2>\n{table(header, rows)}"
