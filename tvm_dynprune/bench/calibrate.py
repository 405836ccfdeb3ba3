# SPDX-License-Identifier: Apache-2.0
"""Operating points: accuracy and cost over a range of thresholds, and which of them to keep."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tvm_dynprune.bench.measurement import mac_cut, provenance
from tvm_dynprune.bench.run import as_input
from tvm_dynprune.data import LabelledImages
from tvm_dynprune.errors import UserError
from tvm_dynprune.progress import track
from tvm_dynprune.runtime import Artifact, Session
from tvm_dynprune.runtime.artifact import OperatingPoint
from tvm_dynprune.runtime.rpc import Device

SHIFTS = tuple(float(shift) for shift in np.arange(-4, 2.01, 0.25))
"""Added to every threshold, in logits; networks are trained for -2 to 0."""
DROPS = {"accurate": 0.1, "balanced": 0.5, "fast": 1.5}
"""Named points: the most that each may lose, in percentage points."""


def sweep_thresholds(
    artifact: Artifact,
    data: LabelledImages,
    *,
    shifts: Sequence[float] = SHIFTS,
    threads: int = 1,
    device: Device | None = None,
) -> list[OperatingPoint]:
    """Measure accuracy and executed MACs with all thresholds shifted, most expensive first.

    Parameters
    ----------
    data
        Labelled images of the network's size, not those it was trained on.
    shifts
        Added to every threshold, in logits.

    Raises
    ------
    UserError
        No gate of the network has a threshold.
    DataError
        The images have another size than the network takes.
    DeviceError
        The device cannot run the artifact, or is lost.
    """
    session = Session(artifact, threads=threads, device=device)
    own = session.threshold_values
    if not len(own):
        raise UserError(
            f"{artifact.path}: no gate of {artifact.manifest.network} has a threshold to move: "
            "train with gates of kind lkam"
        )
    x, found = as_input(data.images), []
    with track("measuring operating points", len(shifts)) as advance:
        for shift in sorted(shifts):
            session.set_threshold_values(own + np.float32(shift))
            accuracy = float((session.run(x).argmax(axis=1) == data.labels).mean())
            share = 1 - mac_cut(artifact.manifest, session.open_channels)
            found.append(OperatingPoint(float(shift), accuracy, share, len(x)))
            advance()
    return found


def choose_points(
    sweep: Sequence[OperatingPoint], drops: Mapping[str, float] = DROPS
) -> dict[str, OperatingPoint]:
    """Choose the cheapest point for each name that loses no more than its drop.

    Drops are in percentage points below the most accurate point of the sweep. That several names
    share a point is as it should be where the network loses nothing.
    """
    best = max(point.accuracy for point in sweep)
    return {
        name: min(
            (p for p in sweep if 100 * (best - p.accuracy) <= drop + 1e-9),
            key=lambda p: p.mac_fraction,
        )
        for name, drop in drops.items()
    }


def choose_within(sweep: Sequence[OperatingPoint], max_macs: float) -> OperatingPoint:
    """Choose the most accurate point that executes at most `max_macs` of the dense MACs.

    Raises
    ------
    UserError
        Every point of the sweep executes more.
    """
    within = [point for point in sweep if point.mac_fraction <= max_macs]
    if not within:
        least = min(point.mac_fraction for point in sweep)
        raise UserError(
            f"--max-macs {max_macs}: the cheapest point executes {least:.3f} of the dense MACs; "
            "train with a smaller --budget"
        )
    return max(within, key=lambda point: (point.accuracy, -point.mac_fraction))


def calibration(
    artifact: Artifact, sweep: Sequence[OperatingPoint], points: Mapping[str, OperatingPoint]
) -> dict[str, Any]:
    """Return a sweep and its named points as the JSON of kind "calibration"."""
    return {
        "kind": "calibration",
        "network": artifact.manifest.network,
        "sweep": [asdict(point) for point in sweep],
        "points": {name: asdict(point) for name, point in points.items()},
        "provenance": provenance(artifact.manifest.versions),
    }
