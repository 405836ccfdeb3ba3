# SPDX-License-Identifier: Apache-2.0
"""Our gated and our dense network in turns: the measurement of kind "bench"."""

from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.bench.measurement import (
    engine_statistics,
    mac_cut,
    open_fraction,
    provenance,
    realised_fraction,
)
from tvm_dynprune.bench.turns import Engine, measure_in_turns
from tvm_dynprune.progress import track
from tvm_dynprune.runtime import Artifact, Session


def measure_bench(
    artifact: Artifact,
    images: np.ndarray,
    *,
    threads: int = 1,
    rounds: int = 10,
    seed: int | None = None,
) -> dict[str, Any]:
    """Time the gated and the dense network in turns on the same inputs.

    Parameters
    ----------
    images
        (N, C, H, W) float32, N a multiple of the artifact's batch.
    rounds
        How often all inputs are timed, three times each.
    seed
        Of random images, for the provenance.
    """
    manifest = artifact.manifest
    session = Session(artifact, threads=threads)
    session.run(images)
    cut = mac_cut(manifest, session.open_channels)
    engines = [
        Engine("dynprune", artifact.path),
        Engine("dynprune_dense", artifact.path, function="dense"),
    ]
    batch = manifest.input_shape[0]
    with track("timing in turns", rounds * len(images) // batch) as advance:
        times = measure_in_turns(
            engines, images, batch, threads=threads, rounds=rounds, advance=advance
        )
    gated, dense = times["dynprune"], times["dynprune_dense"]
    return {
        "kind": "bench",
        "network": manifest.network,
        "soc": manifest.soc,
        "lowering": manifest.lowering,
        "threads": threads,
        "engines": {name: engine_statistics(values) for name, values in times.items()},
        "mac_cut": cut,
        "open_fraction": float(open_fraction(session.open_groups).mean()),
        "speedup_vs_dense": float(np.median(dense) / np.median(gated)),
        "speedup_vs_best_peer": None,
        "realised_fraction": realised_fraction(gated, dense, cut),
        "max_abs_error": manifest.max_abs_error,
        "provenance": provenance(manifest.versions, seed=seed),
    }


def compile_forced(
    name: str,
    out: Path,
    *,
    soc: str,
    lowering: str,
    group_size: int,
    open_fraction: float | None,
    mac_cut: float | None,
    seed: int,
) -> Artifact:
    """Compile one of the project's networks with random weights and forced gates.

    Raises
    ------
    ToolError
        PyTorch is not installed.
    """
    from tvm_dynprune.compiler import Model, compile
    from tvm_dynprune.errors import ToolError
    from tvm_dynprune.soc import load_soc

    try:
        import torch

        from tvm_dynprune.frontend import from_exported
        from tvm_dynprune.nn.export import export
        from tvm_dynprune.nn.forced import forced_network, network_with_mac_cut
        from tvm_dynprune.nn.networks import network_spec
    except ImportError:
        raise ToolError(
            f"bench {name}: networks by name need PyTorch: pip install 'tvm-dynprune[train]'"
        ) from None
    if mac_cut is not None:
        model, _ = network_with_mac_cut(name, group_size=group_size, mac_cut=mac_cut, seed=seed)
    else:
        fraction = 0.5 if open_fraction is None else open_fraction
        model = forced_network(name, group_size=group_size, open_fraction=fraction, seed=seed)
    mod = from_exported(export(model, torch.rand(2, *network_spec(name).input_shape)), batch=1)

    def reference(x: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [model(torch.from_numpy(x)).numpy()]

    return compile(Model(name, mod, reference), load_soc(soc), out, lowering=lowering)
