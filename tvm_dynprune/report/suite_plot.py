# SPDX-License-Identifier: Apache-2.0
"""The benchmark suite's picture: engines on the dense networks, and what a MAC cut gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tvm_dynprune.files import write_atomic

OURS = "dynprune_dense"


def plot_suite(results: Sequence[dict[str, Any]], peers: Sequence[str], path: Path) -> None:
    """Write the picture as SVG.

    Parameters
    ----------
    results
        Measurements of kind "bench" of one or more networks, each at some MAC cuts.
    peers
        The other engines to show, by their names in the measurements.
    """
    networks = list(dict.fromkeys(result["network"] for result in results))
    figure = Figure(figsize=(11, 4), layout="constrained")
    engines, cuts = figure.subplots(1, 2)
    _engines(engines, peers, [_whole(results, network) for network in networks])
    for network in networks:
        _cuts(cuts, [result for result in results if result["network"] == network])
    cuts.plot([0, 1], [1, 0], color="grey", linestyle="--", label="all of the cut realised")
    cuts.set(xlabel="MAC cut", ylabel="latency / our dense latency", title="ours, forced gates")
    cuts.set(xlim=(0, 1), ylim=(0, None))
    cuts.legend(frameon=False, fontsize=8)
    # Text stays text, and the same results give the same file.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "tvm_dynprune"}
    with write_atomic(path) as temporary, mpl.rc_context(style):
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _whole(results: Sequence[dict[str, Any]], network: str) -> dict[str, Any]:
    """The measurement of a network with the most engines."""
    own = [result for result in results if result["network"] == network]
    return max(own, key=lambda result: len(result["engines"]))


def _engines(axes: Axes, peers: Sequence[str], results: Sequence[dict[str, Any]]) -> None:
    """Dense latency of each engine as a multiple of ours, by network."""
    width = 0.8 / len(peers)
    for i, peer in enumerate(peers):
        bars = [
            (at + (i - (len(peers) - 1) / 2) * width, one["engines"][peer]["median_ms"])
            for at, one in enumerate(results)
            if peer in one["engines"]
        ]
        ours = [one["engines"][OURS]["median_ms"] for one in results if peer in one["engines"]]
        heights = [ms / own for (_, ms), own in zip(bars, ours, strict=True)]
        axes.bar([at for at, _ in bars], heights, width, label=peer)
    axes.axhline(1, color="black", linewidth=1, label="ours")
    axes.set_xticks(np.arange(len(results)), [one["network"] for one in results], rotation=20)
    axes.set(ylabel="latency / our dense latency", title="dense networks")
    axes.legend(frameon=False, fontsize=8)


def _cuts(axes: Axes, results: Sequence[dict[str, Any]]) -> None:
    """Gated latency as a share of dense, by MAC cut."""
    points = sorted((one["mac_cut"], 1 / one["speedup_vs_dense"]) for one in results)
    axes.plot(*zip(*points, strict=True), marker="o", label=results[0]["network"])
