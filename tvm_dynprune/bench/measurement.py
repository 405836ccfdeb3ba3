# SPDX-License-Identifier: Apache-2.0
"""Measurements as the JSON that `report` reads."""

import datetime
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.runtime.artifact import Manifest
from tvm_dynprune.runtime.macs import dense_macs, executed_macs


def provenance(versions: dict[str, str], *, seed: int | None = None) -> dict[str, Any]:
    """Command, date, machine and versions of a measurement."""
    return {
        "command": shlex.join(["tvm-dynprune", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_processor()}, {platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions},
        "seed": seed,
    }


def latency_ms(times_ms: np.ndarray) -> float:
    """Median over the runs of each input, mean over the inputs: as a MAC cut is a mean over them.

    `times_ms` is (inputs, runs). Inputs differ in what they leave open, so that the median over all
    of them may lie where no MAC cut belongs to it.
    """
    return float(np.median(times_ms, axis=1).mean())


def engine_statistics(costs: np.ndarray, unit: str = "ms") -> dict[str, float | int]:
    """`latency_ms` as median, percentiles, minimum and maximum of all (inputs, runs).

    `unit` is that of `costs`, "ms" or "instructions", and ends the keys.
    """
    return {
        f"median_{unit}": latency_ms(costs),
        f"p50_{unit}": float(np.percentile(costs, 50)),
        f"p95_{unit}": float(np.percentile(costs, 95)),
        f"min_{unit}": float(costs.min()),
        f"max_{unit}": float(costs.max()),
        "runs": int(costs.size),
    }


def mac_cut(manifest: Manifest, open_channels: list[np.ndarray]) -> float:
    """1 - executed / dense multiply-accumulates, mean over the inputs."""
    executed = executed_macs(manifest.layers, open_channels).mean()
    return float(1 - executed / dense_macs(manifest.dense_layers))


def open_fraction(open_groups: dict[str, np.ndarray]) -> np.ndarray:
    """(N,) share of all gates' groups that each input leaves open; 1 without gates."""
    if not open_groups:
        return np.ones(1)
    return np.concatenate(list(open_groups.values()), axis=1).mean(axis=1)


def realised_fraction(gated_ms: np.ndarray, dense_ms: np.ndarray, cut: float) -> float | None:
    """(1 - t_gated / t_dense) / MAC cut, t being `latency_ms`; None without a cut to speak of."""
    if cut < 0.01:
        return None
    return (1 - latency_ms(gated_ms) / latency_ms(dense_ms)) / cut


def gate_statistics(
    open_groups: dict[str, np.ndarray],
    group_sizes: dict[str, int],
    labels: np.ndarray | None,
    classes: int,
) -> list[dict[str, Any]]:
    """Per gate: open fraction over all inputs, by class and by group."""
    result = []
    for layer, decided in open_groups.items():
        by_class = None
        if labels is not None:
            by_class = [_mean(decided[labels == label]) for label in range(classes)]
        result.append(
            {
                "name": layer,
                "groups": decided.shape[1],
                "group_size": group_sizes[layer],
                "open_fraction": float(decided.mean()),
                "open_fraction_by_class": by_class,
                "open_fraction_by_group": [float(v) for v in decided.mean(axis=0)],
            }
        )
    return result


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
