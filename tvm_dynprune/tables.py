# SPDX-License-Identifier: Apache-2.0
"""Results as tables for the terminal."""

from typing import Any

import numpy as np
from rich.table import Table


def run_table(result: dict[str, Any]) -> Table:
    """The headline of a "run" measurement."""
    table = Table(title=f"{result['network']} on {result['soc']}, {result['images']} images")
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
    if result["realised_fraction"] is not None:
        table.add_row("realised fraction", f"{result['realised_fraction']:.2f}")
    return table


def bench_table(result: dict[str, Any]) -> Table:
    """The headline of a "bench" measurement."""
    title = f"{result['network']} on {result['soc']}, {result['threads']} thread(s)"
    table = Table(title=title)
    for column in ("engine", "median ms", "p95 ms", "min ms", "max ms", "runs"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for name, times in result["engines"].items():
        keys = ("median_ms", "p95_ms", "min_ms", "max_ms")
        table.add_row(name, *(f"{times[key]:.3f}" for key in keys), str(times["runs"]))
    realised = result["realised_fraction"]
    table.caption = (
        f"MAC cut {result['mac_cut']:.1%}, open fraction {result['open_fraction']:.1%}, "
        f"{result['speedup_vs_dense']:.2f}× dense, realised fraction "
        + ("–" if realised is None else f"{realised:.2f}")
    )
    return table
