# SPDX-License-Identifier: Apache-2.0
"""Our gated and our dense network, and other engines, in turns: the measurement of kind "bench"."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.bench.engines import engine_module
from tvm_dynprune.bench.forced import Forced, outputs, write_for_peers
from tvm_dynprune.bench.measurement import (
    engine_statistics,
    latency_ms,
    mac_cut,
    open_fraction,
    provenance,
    realised_fraction,
)
from tvm_dynprune.bench.turns import Engine, EngineError, measure_in_turns, our_engine
from tvm_dynprune.errors import ToolError
from tvm_dynprune.progress import track, working
from tvm_dynprune.runtime import Artifact, Session

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of the outputs' scale, for an engine to count as correct


def measure_bench(
    artifact: Artifact,
    images: np.ndarray,
    *,
    forced: Forced | None = None,
    against: Sequence[str] = (),
    threads: int = 1,
    rounds: int = 10,
    seed: int | None = None,
) -> dict[str, Any]:
    """Time the gated and the dense network, and other engines, in turns on the same inputs.

    Parameters
    ----------
    images
        (N, C, H, W) float32, N a multiple of the artifact's batch.
    forced
        What the artifact was compiled from; needed with `against`.
    against
        Other engines, each of which runs the dense network; the fastest that can runs the masked
        one too, which is what gating costs without us.
    rounds
        How often all inputs are timed, three times each.
    seed
        Of random images, for the provenance.

    Raises
    ------
    ToolError
        An engine is not installed or cannot convert the network.
    EngineError
        An engine dies or computes something else than PyTorch.
    """
    manifest = artifact.manifest
    session = Session(artifact, threads=threads)
    session.run(images)
    cut = mac_cut(manifest, session.open_channels)
    ours = [
        our_engine("dynprune", artifact.path),
        our_engine("dynprune_dense", artifact.path, "dense"),
    ]
    batch = manifest.input_shape[0]
    with tempfile.TemporaryDirectory() as folder:
        peers, wanted = [], {}
        if forced is not None and against:
            peers, wanted = _peers(forced, against, images, Path(folder), threads)
        with track("timing in turns", rounds * len(images) // batch) as advance:
            measured = measure_in_turns(
                [*ours, *peers], images, batch, threads=threads, rounds=rounds, advance=advance
            )
    errors = {name: _error(measured[name].outputs, wanted[name], name) for name in wanted}
    times = {name: one.times_ms for name, one in measured.items()}
    gated, dense = times["dynprune"], times["dynprune_dense"]
    gated_ms, dense_ms = latency_ms(gated), latency_ms(dense)
    fastest_ms = min((latency_ms(times[name]) for name in against), default=None)
    statistics = {name: engine_statistics(values) for name, values in times.items()}
    for name, one in measured.items():
        statistics[name]["peak_memory_mib"] = one.peak_memory_mib
        if name in errors:
            statistics[name]["max_abs_error"] = errors[name]
    return {
        "kind": "bench",
        "network": manifest.network,
        "soc": manifest.soc,
        "lowering": manifest.lowering,
        "threads": threads,
        "forced_gates": forced is not None,
        "engines": statistics,
        "mac_cut": cut,
        "open_fraction": float(open_fraction(session.open_groups).mean()),
        "speedup_vs_dense": dense_ms / gated_ms,
        "speedup_vs_best_peer": None if fastest_ms is None else fastest_ms / gated_ms,
        "realised_fraction": realised_fraction(gated, dense, cut),
        "max_abs_error": manifest.max_abs_error,
        "settings": {name: engine_module(name).SETTINGS for name in against},
        "provenance": provenance(manifest.versions | _versions(against), seed=seed),
    }


def _peers(
    forced: Forced, against: Sequence[str], images: np.ndarray, folder: Path, threads: int
) -> tuple[list[Engine], dict[str, np.ndarray]]:
    """The engines, the masked network in the fastest of them last, and what each must compute."""
    with working("converting the network for the other engines"):
        models = {name: folder / f"{name}.onnx" for name in ("dense", "masked")}
        write_for_peers(forced.dense, forced.name, models["dense"])
        write_for_peers(forced.gated, forced.name, models["masked"])
        engines = [_peer(name, name, models["dense"], folder) for name in against]
    with working("looking for the fastest of the other engines"):
        first = measure_in_turns(engines, images[:1], 1, threads=threads, repeat=10)
        ranked = sorted(against, key=lambda name: float(np.median(first[name].times_ms)))
        masked = _masked(ranked, models["masked"], images[:1], folder, threads)
    wanted = dict.fromkeys(against, outputs(forced.dense, images))
    if masked is not None:
        wanted[masked.name] = outputs(forced.gated, images)
        engines.append(masked)
    return engines, wanted


def _masked(
    ranked: Sequence[str], model: Path, image: np.ndarray, folder: Path, threads: int
) -> Engine | None:
    """The masked network in the first engine that can run it; not each knows all operators."""
    for name in ranked:
        try:
            engine = _peer(f"{name}_masked", name, model, folder)
            measure_in_turns([engine], image, 1, threads=threads)
        except (ToolError, EngineError) as error:
            logger.warning("%s cannot run the masked network: %s", name, error)
        else:
            return engine
    return None


def _peer(name: str, kind: str, model: Path, folder: Path) -> Engine:
    converted = folder / name
    converted.mkdir()
    return Engine(name, kind, engine_module(kind).prepare(model, converted))


def _error(got: np.ndarray, wanted: np.ndarray, name: str) -> float:
    """Largest error as a share of the outputs' scale; too large a one is an error."""
    error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    if not error <= TOLERANCE:
        raise EngineError(f"engine {name} differs from PyTorch by {error:.1e} of the scale")
    return error


def _versions(against: Sequence[str]) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(engine_module(name).PACKAGE) for name in against}
