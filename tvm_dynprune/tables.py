# SPDX-License-Identifier: Apache-2.0
"""Results as tables for the terminal."""

from typing import Any

import numpy as np
from rich.table import Table


def run_table(result: dict[str, Any]) -> Table:
    """The headline of a "run" measurement."""
    table = Table(
        title=f"{result['network']} on {result['soc']}, lowering {result['lowering']}, "
        f"{result['images']} images"
    )
    table.add_column("")
    table.add_column("", justify="right")
    if result["accuracy"] is not None:
        table.add_row("accuracy", f"{result['accuracy']:.2%}")
    if agreement := result.get("agreement"):
        text = f"{agreement['equal']} of {agreement['of']}"
        table.add_row(f"same class as {agreement['reference']}", text)
    if result["max_abs_error"] is not None:
        table.add_row("largest error, of the outputs' scale", f"{result['max_abs_error']:.1e}")
    table.add_row("open fraction", f"{np.mean(result['open_fraction']):.1%}")
    table.add_row("MAC cut", f"{result['mac_cut']:.1%}")
    if result["latency_ms"]:
        gated, dense = np.array(result["latency_ms"]), np.array(result["latency_dense_ms"])
        for name, times in (("dense", dense), ("gated", gated)):
            median, p95 = np.percentile(times, [50, 95])
            table.add_row(f"latency {name}: median, p95", f"{median:.3f}, {p95:.3f} ms")
        table.add_row("dense / gated", f"{np.median(dense) / np.median(gated):.2f}×")
    if "instructions" in result:
        for name, key in (("dense", "instructions_dense"), ("gated", "instructions")):
            median, p95 = np.percentile(np.array(result[key]) / 1e6, [50, 95])
            table.add_row(f"{name}: median, p95", f"{median:.2f}, {p95:.2f} million instructions")
    if result["realised_fraction"] is not None:
        table.add_row("realised fraction", f"{result['realised_fraction']:.2f}")
    return table


def points_table(manifest: Any) -> Table:
    """The operating points that an artifact's manifest holds."""
    table = Table(title=f"operating points of {manifest.network}")
    for column in ("point", "threshold shift", "accuracy", "MACs executed", "images"):
        table.add_column(column, justify="left" if column == "point" else "right")
    for name, point in manifest.points.items():
        table.add_row(
            name,
            f"{point.threshold_shift:+.2f}",
            f"{point.accuracy:.2%}",
            f"{point.mac_fraction:.1%}",
            str(point.images),
        )
    return table


def demo_table(results: list[dict[str, Any]]) -> Table:
    """Operating points of the CIFAR-10 network, as `run_cifar10` measured them."""
    first = results[0]
    table = Table(
        title=f"{first['network']} on {first['soc']}: {first['images_all']} {first['split']} "
        f"images of CIFAR-10, the first {first['images']} of them timed"
    )
    for column in ("point", "accuracy", "MAC cut", "dense ms", "gated ms", "speed-up", "realised"):
        table.add_column(column, justify="left" if column == "point" else "right")
    for result in results:
        gated, dense = (np.median(result[key]) for key in ("latency_ms", "latency_dense_ms"))
        realised = result["realised_fraction"]
        table.add_row(
            result["point"],
            f"{result['accuracy_all']:.2%}",
            f"{result['mac_cut']:.1%}",
            f"{dense:.3f}",
            f"{gated:.3f}",
            f"{dense / gated:.2f}×",
            "–" if realised is None else f"{realised:.2f}",
        )
    return table


def bench_table(result: dict[str, Any]) -> Table:
    """The headline of a "bench" measurement."""
    threads = f", {result['threads']} thread(s)" if result["threads"] else ""
    table = Table(
        title=f"{result['network']} on {result['soc']}, lowering {result['lowering']}{threads}"
    )
    unit = result.get("unit", "ms")
    shown, scale = ("ms", 1.0) if unit == "ms" else ("M instr.", 1e-6)
    names = ("median", "p95", "min", "max")
    for column in ("engine", *(f"{name} {shown}" for name in names), "runs"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for engine, costs in result["engines"].items():
        values = (f"{scale * costs[f'{name}_{unit}']:.3f}" for name in names)
        table.add_row(engine, *values, str(costs["runs"]))
    realised = result["realised_fraction"]
    table.caption = (
        f"MAC cut {result['mac_cut']:.1%}, open fraction {result['open_fraction']:.1%}, "
        f"{result['speedup_vs_dense']:.2f}× dense, realised fraction "
        + ("–" if realised is None else f"{realised:.2f}")
    )
    return table


def choices_table(choices: list[dict[str, Any]]) -> Table:
    """How each convolution is computed, and why."""
    table = Table()
    for column in ("layer", "lowering", "algorithm", "reason"):
        table.add_column(column)
    for one in choices:
        lowering = one["lowering"] if one["gated"] else "dense (no gate)"
        table.add_row(one["layer"], lowering, one["algorithm"], one["reason"])
    return table


def layers_table(result: dict[str, Any]) -> Table:
    """Where the time goes, per layer."""
    table = Table(title=f"one core's peak: {result['peak_gflops']:.0f} GFLOP/s")
    columns = ("layer", "dense ms", "of peak", "gated ms", "of peak", "MAC cut", "realised")
    for column in columns:
        table.add_column(column, justify="left" if column == "layer" else "right")
    for row in result["layers"]:
        share = [row[f"{name}_gflops"] / result["peak_gflops"] for name in ("dense", "gated")]
        realised = row["realised_fraction"]
        table.add_row(
            row["layer"],
            f"{row['dense_ms']:.3f}",
            f"{share[0]:.0%}",
            f"{row['gated_ms']:.3f}",
            f"{share[1]:.0%}",
            f"{row['mac_cut']:.0%}",
            "–" if realised is None else f"{realised:.2f}",
        )
    for name in ("dense", "gated"):
        total = sum(row[f"{name}_ms"] for row in result["layers"])
        table.caption = f"{table.caption or ''}{name} {total:.3f} ms  "
    return table


def tuning_table(progress: Any) -> Table:
    """How far tuning has come: a `tune.tuner.Progress`."""
    budget, elapsed = progress.budget, progress.elapsed_s
    limits = [f"{progress.trials} trials" + (f" of {budget.trials}" if budget.trials else "")]
    limits.append(f"{elapsed / 60:.1f} min" + (f" of {budget.minutes}" if budget.minutes else ""))
    stages = (
        ("time against open channels", progress.costs_measured),
        ("finals", progress.finals_played),
    )
    for stage, count in stages:
        if count:
            limits.append(f"{stage}: {count} of {len(progress.tasks)} kernels")
            break
    table = Table(title=", ".join(limits))
    table.add_column("kernel")
    unit, rate = _tuning_units(progress.unit)
    for column in ("trials", "failed", f"own {unit}", f"best {unit}", rate, "gain"):
        table.add_column(column, justify="right")
    for one in progress.tasks:
        table.add_row(
            _layers(one.task.layers),
            str(one.trials),
            str(one.failures or ""),
            f"{one.own_s * 1e3:.3f}",
            f"{one.best_s * 1e3:.3f}",
            f"{2 * one.task.macs / one.best_s / 1e9:.3g}",
            f"{one.gain:.2f}",
        )
    own, best = progress.own_s, progress.expected_s
    table.add_section()
    if np.isfinite(best):  # all kernels have been measured
        gain = f"{own / best:.2f}"
        table.add_row("all", "", "", f"{own * 1e3:.3f}", f"{best * 1e3:.3f}", "", gain)
    return table


def costs_table(rows: Any, errors: Any, unit: str) -> Table:
    """Fitted time against open channels: `CostRow`s, and errors on held-out open sets."""
    table = Table(
        title=f"{_tuning_units(unit)[0]} by share of open pairs of channels; median error on "
        f"{len(errors)} held-out open sets {np.median(errors):.1%}"
    )
    table.add_column("kernel")
    shares = [f"{share:.0%}" for share in rows[0].expected_s]
    for column in ("lowering", *shares, "error", "dense"):
        table.add_column(column, justify="left" if column == "lowering" else "right", no_wrap=True)
    table.caption = "dense: the share from which on a kernel without lists is faster"
    for row in rows:
        table.add_row(
            _layers(row.layers) if row.layers else "",
            f"{row.cost.lowering} {row.cost.schedule.algorithm}",
            *(f"{seconds * 1e3:.3f}" for seconds in row.expected_s.values()),
            "" if row.cost.lowering == "dense" else f"{row.cost.error:.1%}",
            f"{row.dense_from:.0%}" if row.layers else "",
        )
    return table


def log_table(info: Any, best: Any, trials: Any) -> Table:
    """The best schedules of a tuning log: its `RunInfo`, `Best`s and `Trial`s."""
    failed = sum(trial.seconds is None for trial in trials)
    table = Table(
        title=f"{info.network} on {info.soc}: {len(trials)} trials, {failed} failed, "
        f"{max(trial.at_s for trial in trials) / 60:.1f} min"
    )
    table.add_column("kernel")
    for column in ("open", *_tuning_units(info.unit)):
        table.add_column(column, justify="right")
    table.add_column("schedule")
    for one in best:
        table.add_row(
            _layers(one.task.layers),
            f"{one.task.open_fraction:.0%}",
            f"{one.expected_s * 1e3:.3f}",
            f"{2 * one.task.macs / one.expected_s / 1e9:.3g}",
            one.schedule.to_json(),
        )
    return table


def _tuning_units(unit: str) -> tuple[str, str]:
    """What a kernel takes, and what it does in that: 1e-3 and 1e9 of a log's unit."""
    if unit == "instructions":
        return "million instructions", "FLOP per instruction"
    return "ms", "GFLOP/s"


def _layers(names: Any) -> str:
    """The first layer that runs a kernel, and how many others do."""
    return names[0] if len(names) == 1 else f"{names[0]} (×{len(names)})"
