# SPDX-License-Identifier: Apache-2.0
"""Where the time of a network goes: per layer, gated and dense, against the core's peak."""

from collections import defaultdict
from typing import Any

import numpy as np
import tvm

from tvm_dynprune.bench.turns import pinned
from tvm_dynprune.kernels.fma_peak import ACCUMULATORS, fma_peak, fma_peak_flop
from tvm_dynprune.runtime import Artifact, Session
from tvm_dynprune.runtime.artifact import FUNCTIONS
from tvm_dynprune.runtime.macs import layer_pairs
from tvm_dynprune.soc import load_soc

OTHER = "(gates, pooling, layout)"


def measure_layers(artifact: Artifact, x: np.ndarray, *, repeat: int = 30) -> dict[str, Any]:
    """Time every kernel on one batch and add the times up per layer.

    Returns
    -------
    dict
        ``peak_gflops``, measured on the spot, and ``layers``: name, ``dense_ms``, ``gated_ms``
        (medians), ``dense_gflops``, ``gated_gflops``, ``mac_cut`` and ``realised_fraction``. The
        last entry is everything that belongs to no convolution. A depthwise convolution without
        times is computed by the kernel of the convolution before it.
    """
    manifest = artifact.manifest
    with pinned(1):
        session = Session(artifact)
        session.run(x)
        times = {name: _times_by_layer(session, x, name, repeat) for name in FUNCTIONS}
        peak = measure_peak()
    gated = {layer["layer"]: layer for layer in manifest.layers}
    rows = []
    for layer in manifest.dense_layers:
        name = layer["layer"]
        macs = {"dense": layer["channels_in"] * layer["channels_out"] * layer["macs_per_pair"]}
        executed = layer_pairs(gated[name], session.open_channels, len(x)) if name in gated else 0
        macs["main"] = float(np.mean(executed)) * layer["macs_per_pair"]
        rows.append(_row(name, {f: times[f].pop(name, 0.0) for f in FUNCTIONS}, macs, len(x)))
    rest = {name: sum(times[name].values()) for name in FUNCTIONS}
    rows.append(_row(OTHER, rest, {"main": 0.0, "dense": 0.0}, len(x)))
    return {"peak_gflops": peak, "layers": rows}


def _row(
    name: str, times_ms: dict[str, float], macs: dict[str, float], batch: int
) -> dict[str, Any]:
    cut = 1 - macs["main"] / macs["dense"] if macs["dense"] else 0.0
    saved = 1 - times_ms["main"] / times_ms["dense"] if times_ms["dense"] else 0.0
    flops = {f: 2e-6 * macs[f] * batch / times_ms[f] if times_ms[f] else 0.0 for f in FUNCTIONS}
    return {
        "layer": name,
        "dense_ms": times_ms["dense"],
        "gated_ms": times_ms["main"],
        "dense_gflops": flops["dense"],
        "gated_gflops": flops["main"],
        "mac_cut": cut,
        "realised_fraction": saved / cut if cut > 0.01 and times_ms["dense"] else None,
    }


def _times_by_layer(
    session: Session, x: np.ndarray, function: str, repeat: int
) -> dict[str, float]:
    """Layer → median over the runs of the sum of its kernels' times; "" for those of no layer."""
    calls = session.manifest.kernels[function]
    runs: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeat):
        total: dict[str, float] = defaultdict(float)
        position = 0
        for kernel, time_ns in session.kernel_ticks(x, function=function):
            at = next((i for i in range(position, len(calls)) if calls[i][0] == kernel), None)
            # A kernel of TVM's own belongs to no layer; a conditional's may run more than once.
            total["" if at is None else calls[at][1]] += time_ns / 1e6
            position = position if at is None else at
            if at is not None and session.manifest.lowering != "if":
                position = at + 1
        for layer, time_ms in total.items():
            runs[layer].append(time_ms)
    return {layer: float(np.median(times)) for layer, times in runs.items()}


def measure_peak() -> float:
    """GFLOP/s of multiply-adds on one core, the best of a few tries."""
    soc = load_soc("host")
    kernel = fma_peak(soc.lanes).with_attr("global_symbol", "main")
    main = tvm.compile(tvm.IRModule({"main": kernel}), target=soc.tvm_target()).mod
    x = tvm.runtime.tensor(np.full((2, soc.lanes), 0.5, "float32"))
    y = tvm.runtime.tensor(np.ones((ACCUMULATORS, soc.lanes), "float32"))
    result = main.time_evaluator("main", tvm.cpu(), number=2, repeat=15)(x, y)
    return fma_peak_flop(soc.lanes) / min(result.results) / 1e9
