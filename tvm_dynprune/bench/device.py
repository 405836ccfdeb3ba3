# SPDX-License-Identifier: Apache-2.0
"""What inputs cost on a device, by its own clock."""

from dataclasses import asdict
from typing import Any

import numpy as np

from tvm_dynprune.bench.measurement import (
    engine_statistics,
    latency_ms,
    mac_cut,
    open_fraction,
    provenance,
    realised_fraction,
)
from tvm_dynprune.progress import track
from tvm_dynprune.runtime import Artifact, Session
from tvm_dynprune.runtime.rpc import Device

REPEATS = 10  # of each input on a device whose clock is time


def device_costs(session: Session, x: np.ndarray, count: int, cut: float) -> dict[str, Any]:
    """Cost of the batch of each of the first `count` images of `x`, gated and dense in turns.

    ``latency_ms`` and ``latency_dense_ms``, or ``instructions`` and ``instructions_dense`` where
    the device counts those, and the ``realised_fraction`` of either.
    """
    gated, dense = _in_turns(session, x, 1 if session.clock == "instructions" else REPEATS)
    batch = session.manifest.input_shape[0]
    name = "instructions{}" if session.clock == "instructions" else "latency{}_ms"
    per_image = (np.repeat(np.median(one, axis=1), batch)[:count] for one in (gated, dense))
    found = (costs.tolist() for costs in per_image)
    return {
        **dict(zip((name.format(""), name.format("_dense")), found, strict=True)),
        "realised_fraction": realised_fraction(gated, dense, cut),
    }


def measure_device_bench(
    artifact: Artifact,
    images: np.ndarray,
    device: Device,
    *,
    forced: bool,
    rounds: int = 10,
    seed: int | None = None,
) -> dict[str, Any]:
    """Time the gated and the dense network in turns on a device; see `measure_bench`.

    The engines' keys end in ``_instructions`` instead of ``_ms`` where the device counts those.
    """
    manifest, session = artifact.manifest, Session(artifact, device=device)
    session.run(images)
    cut, fraction = mac_cut(manifest, session.open_channels), open_fraction(session.open_groups)
    unit = "instructions" if session.clock == "instructions" else "ms"
    gated, dense = _in_turns(session, images, 1 if unit == "instructions" else 3 * rounds)
    return {
        "kind": "bench",
        "network": manifest.network,
        "soc": manifest.soc,
        "lowering": manifest.lowering,
        "precision": manifest.precision,
        "threads": None,
        "forced_gates": forced,
        "unit": unit,
        "engines": {
            "dynprune": engine_statistics(gated, unit),
            "dynprune_dense": engine_statistics(dense, unit),
        },
        "mac_cut": cut,
        "open_fraction": float(fraction.mean()),
        "speedup_vs_dense": latency_ms(dense) / latency_ms(gated),
        "speedup_vs_best_peer": None,
        "realised_fraction": realised_fraction(gated, dense, cut),
        "max_abs_error": session.self_test().max_abs_error,
        "device": asdict(device.info),
        "provenance": provenance(manifest.versions, seed=seed),
    }


def _in_turns(session: Session, x: np.ndarray, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """(batches, repeats) costs of the gated and of the dense network, in ms or instructions."""
    batch = session.manifest.input_shape[0]
    scale = 1.0 if session.clock == "instructions" else 1e-6
    costs: dict[str, list[list[float]]] = {"main": [], "dense": []}
    with track("gated and dense in turns on the device", len(x) // batch) as advance:
        for start in range(0, len(x), batch):
            for function, runs in costs.items():
                piece = x[start : start + batch]
                runs.append(session.device_ticks(piece, function=function, repeats=repeats))
            advance()
    return scale * np.array(costs["main"]), scale * np.array(costs["dense"])
