# SPDX-License-Identifier: Apache-2.0
"""Our gated and our dense network, and other engines, in turns: the measurement of kind "bench"."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.bench.engines import engine_module
from tvm_dynprune.bench.measurement import (
    engine_statistics,
    latency_ms,
    mac_cut,
    open_fraction,
    provenance,
    realised_fraction,
)
from tvm_dynprune.bench.subject import DENSE, MASKED, Originals, Subject
from tvm_dynprune.bench.turns import Engine, EngineError, measure_in_turns, our_engine
from tvm_dynprune.errors import ToolError
from tvm_dynprune.progress import track, working
from tvm_dynprune.runtime import Session

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of the outputs' scale, for an engine to count as correct


def measure_bench(
    subject: Subject,
    *,
    against: Sequence[str] = (),
    threads: int = 1,
    rounds: int = 10,
    seed: int | None = None,
) -> dict[str, Any]:
    """Time the gated and the dense network, and other engines, in turns on the same inputs.

    Parameters
    ----------
    against
        Other engines, each of which runs the dense network; the fastest that can runs the masked
        one too, which is what gating costs without us. Of a network that is there with its gates
        only, each runs the masked one.
    rounds
        How often all inputs are timed, three times each.
    seed
        Of random images, for the provenance.

    Raises
    ------
    ToolError
        An engine is not installed or cannot convert the network, or there is none to convert.
    EngineError
        An engine dies or computes something else than the network's own framework.
    """
    artifact, images, originals = subject.artifact, subject.images, subject.originals
    if against and originals is None:
        raise ToolError("--against takes an ONNX file or the name of a network: no others run this")
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
        if originals is not None and against:
            peers, wanted = _peers(originals, against, images, batch, Path(folder), threads)
        with track("timing in turns", rounds * len(images) // batch) as advance:
            measured = measure_in_turns(
                [*ours, *peers], images, batch, threads=threads, rounds=rounds, advance=advance
            )
    errors = {name: _error(measured[name].outputs, wanted[name], name) for name in wanted}
    times = {name: one.times_ms for name, one in measured.items()}
    gated, dense = times["dynprune"], times["dynprune_dense"]
    gated_ms, dense_ms = latency_ms(gated), latency_ms(dense)
    fastest_ms = min((latency_ms(times[one.name]) for one in peers[: len(against)]), default=None)
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
        "forced_gates": subject.is_forced,
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
    originals: Originals,
    against: Sequence[str],
    images: np.ndarray,
    batch: int,
    folder: Path,
    threads: int,
) -> tuple[list[Engine], dict[str, np.ndarray]]:
    """The engines, the masked network in the fastest of them last, and what each must compute."""
    with working("converting the network for the other engines"):
        files = originals.write(folder)
        kind = DENSE if DENSE in files else MASKED
        engines = [_peer(_label(name, kind), name, files[kind], folder) for name in against]
        wanted = dict.fromkeys((one.name for one in engines), originals.outputs[kind](images))
    if kind == DENSE and MASKED in files:
        with working("looking for the fastest of the other engines"):
            first = measure_in_turns(engines, images[:batch], batch, threads=threads, repeat=10)
            ranked = sorted(against, key=lambda name: float(np.median(first[name].times_ms)))
            masked = _masked(ranked, files[MASKED], images[:batch], folder, threads)
        if masked is not None:
            wanted[masked.name] = originals.outputs[MASKED](images)
            engines.append(masked)
    return engines, wanted


def _label(name: str, kind: str) -> str:
    return name if kind == DENSE else f"{name}_masked"


def _masked(
    ranked: Sequence[str], model: Path, images: np.ndarray, folder: Path, threads: int
) -> Engine | None:
    """The masked network in the first engine that can run it; not each knows all operators."""
    for name in ranked:
        try:
            engine = _peer(_label(name, MASKED), name, model, folder)
            measure_in_turns([engine], images, len(images), threads=threads)
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
        raise EngineError(
            f"engine {name} differs from the network's own framework by {error:.1e} of the scale"
        )
    return error


def _versions(against: Sequence[str]) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(engine_module(name).PACKAGE) for name in against}
