# SPDX-License-Identifier: Apache-2.0
"""Run images through an artifact, and time it in turns with its dense twin."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.bench.device import device_costs
from tvm_dynprune.bench.measurement import (
    gate_statistics,
    mac_cut,
    open_fraction,
    provenance,
    realised_fraction,
)
from tvm_dynprune.bench.turns import measure_in_turns, our_engine
from tvm_dynprune.data import LabelledImages
from tvm_dynprune.errors import DataError
from tvm_dynprune.files import write_atomic
from tvm_dynprune.progress import track
from tvm_dynprune.runtime import Artifact, Session
from tvm_dynprune.runtime.macs import dense_macs
from tvm_dynprune.runtime.rpc import Device


def as_input(images: np.ndarray) -> np.ndarray:
    """Images uint8 as the networks take them: float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def measure_run(
    artifact: Artifact,
    data: LabelledImages | np.ndarray,
    *,
    threads: int = 1,
    threshold: float | None = None,
    point: str | None = None,
    shifts: Sequence[float] = (),
    timed: bool = True,
    reference: np.ndarray | None = None,
    device: Device | None = None,
) -> dict[str, Any]:
    """Run images and return the measurement that `report` reads (kind "run").

    Parameters
    ----------
    data
        Labelled images, or images uint8 (N, C, H, W) alone.
    threshold
        For all gates; None leaves each its own.
    point
        Operating point to run at; see `Session.use`.
    shifts
        Run as operating points, if there are labels: added to every threshold.
    timed
        Measure latencies, which takes most of the time.
    reference
        (N, classes) float32: what the masked network computes in its own framework.
    device
        Where to run, if not here; one that counts instructions gives ``instructions`` and
        ``instructions_dense`` instead of latencies.

    Raises
    ------
    DataError
        The images have another size than the network takes.
    DeviceError
        The device cannot run the artifact, or is lost.
    """
    labels = data.labels if isinstance(data, LabelledImages) else None
    images = data.images if isinstance(data, LabelledImages) else data
    manifest = artifact.manifest
    x = as_input(images)
    _check_size(artifact, x)
    session = Session(artifact, threads=threads, device=device)
    if threshold is not None:
        session.set_thresholds(threshold)
    if point is not None:
        session.use(point)
    logits = session.run(x)
    classes = list(manifest.classes) or [str(i) for i in range(logits.shape[1])]
    predictions = logits.argmax(axis=1)
    groups = session.open_groups
    cut = mac_cut(manifest, session.open_channels)
    result: dict[str, Any] = {
        "kind": "run",
        "network": manifest.network,
        "soc": manifest.soc,
        "lowering": manifest.lowering,
        "threads": threads,
        "point": point,
        "images": len(x),
        "classes": classes,
        "labels": None if labels is None else [int(v) for v in labels],
        "predictions": [int(v) for v in predictions],
        "accuracy": None if labels is None else float((predictions == labels).mean()),
        "macs_dense": dense_macs(manifest.dense_layers),
        "macs": [int(v) for v in np.broadcast_to(session.macs, (len(x),))],
        "open_fraction": [float(v) for v in np.broadcast_to(open_fraction(groups), (len(x),))],
        "gates": gate_statistics(
            groups, {g.layer: g.group_size for g in manifest.gates}, labels, len(classes)
        ),
        "mac_cut": cut,
        "max_abs_error": manifest.max_abs_error,
        "provenance": provenance(manifest.versions),
        "device": None if device is None else asdict(device.info),
    }
    if reference is not None:
        result |= _agreement(logits, reference)
    result |= {"latency_ms": [], "latency_dense_ms": None, "realised_fraction": None}
    if timed and device is not None:
        result |= device_costs(session, _whole_batches(artifact, x), len(x), cut)
    elif timed:
        result |= _latencies(artifact, x, threads, session.threshold_values, cut)
    if labels is not None and shifts:
        result["points"] = _points(artifact, x, labels, threads, shifts)
    return result


def _check_size(artifact: Artifact, x: np.ndarray) -> None:
    wanted = tuple(artifact.manifest.input_shape[1:])
    if x.shape[1:] != wanted:
        raise DataError(
            f"images of {'x'.join(map(str, x.shape[1:]))} (channels, height, width), "
            f"{artifact.manifest.network} takes {'x'.join(map(str, wanted))}"
        )


def _agreement(logits: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    equal = int((logits.argmax(axis=1) == reference.argmax(axis=1)).sum())
    return {
        "agreement": {"reference": "masked PyTorch", "equal": equal, "of": len(logits)},
        "max_abs_error": float(np.abs(logits - reference).max() / np.abs(reference).max()),
    }


def _whole_batches(artifact: Artifact, x: np.ndarray) -> np.ndarray:
    batch = artifact.manifest.input_shape[0]
    missing = -len(x) % batch
    return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x


def _latencies(
    artifact: Artifact, x: np.ndarray, threads: int, thresholds: np.ndarray, cut: float
) -> dict[str, Any]:
    """Latency of each image's batch, gated and dense in turns."""
    batch = artifact.manifest.input_shape[0]
    engines = [
        our_engine("dynprune", artifact.path, thresholds=thresholds),
        our_engine("dynprune_dense", artifact.path, "dense"),
    ]
    padded = _whole_batches(artifact, x)
    with track("timing gated and dense in turns", len(padded) // batch) as advance:
        times = measure_in_turns(engines, padded, batch, threads=threads, advance=advance)
    gated, dense = (times[engine.name].times_ms for engine in engines)
    per_image = [
        np.repeat(np.median(one, axis=1), batch)[: len(x)].tolist() for one in (gated, dense)
    ]
    return {
        "latency_ms": per_image[0],
        "latency_dense_ms": per_image[1],
        "realised_fraction": realised_fraction(gated, dense, cut),
    }


def _points(
    artifact: Artifact, x: np.ndarray, labels: np.ndarray, threads: int, shifts: Sequence[float]
) -> list[dict[str, float]]:
    """Accuracy, MAC cut and latency with all thresholds shifted."""
    session = Session(artifact, threads=threads)
    sample = _whole_batches(artifact, x[:100])
    points = []
    own = session.threshold_values
    for shift in shifts:
        session.set_threshold_values(own + shift)
        accuracy = float((session.run(x).argmax(axis=1) == labels).mean())
        engine = our_engine("dynprune", artifact.path, thresholds=own + shift)
        times = measure_in_turns(
            [engine], sample, artifact.manifest.input_shape[0], threads=threads
        )
        points.append(
            {
                "threshold_shift": float(shift),
                "accuracy": accuracy,
                "mac_cut": mac_cut(artifact.manifest, session.open_channels),
                "median_ms": float(np.median(times["dynprune"].times_ms)),
            }
        )
    return points


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write a measurement."""
    with write_atomic(path) as temporary:
        temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")
