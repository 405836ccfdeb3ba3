# SPDX-License-Identifier: Apache-2.0
"""Random gated CNNs: all lowerings compute what the masked PyTorch module does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
from hypothesis import HealthCheck, given, settings
from tvm import relax

from tests.random_networks import Network, RandomNetwork, networks
from tvm_dynprune.frontend.exported import from_exported
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.expose_gates import gate_infos
from tvm_dynprune.soc import Soc, load_soc

TOLERANCE = 1e-4  # of the output's scale
SETTINGS = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}


def check(network: Network) -> None:
    """Compile in three ways and compare outputs and decisions with PyTorch."""
    model = RandomNetwork(network).eval()
    rng = np.random.default_rng(network.seed)
    x = rng.standard_normal((network.batch, 3, *network.size)).astype("float32")
    expected, decisions = reference(model, torch.from_numpy(x))
    annotated = pipeline.annotate(from_exported(torch.export.export(model, (torch.from_numpy(x),))))
    infos = gate_infos(annotated["main"])
    assert len(infos) == len(decisions)
    thresholds = [info.threshold for info in infos if info.threshold is not None]
    arguments = [x, *[np.array(thresholds, "float32")] * bool(thresholds)]
    for lowering in ("dense", "if", "indexed"):
        out, *opened = compute(annotated, lowering, arguments)
        scale = max(float(np.abs(expected).max()), 1e-3)
        assert np.abs(out - expected).max() <= TOLERANCE * scale, lowering
        for got, wanted in zip(opened, decisions, strict=True):
            np.testing.assert_array_equal(got, wanted)


def reference(model: RandomNetwork, x: torch.Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
    """PyTorch's output, and the decision (N, C) of each gate, in order.

    A gate over planes of one pixel is no gate to the compiler: it cannot tell which factor masks.
    """
    decisions, y = [], x
    with torch.no_grad():
        for block in model.blocks:
            source, y = y, block(y)
            if block.gate is not None and y.shape[2:] != (1, 1):
                decisions.append(block.gate(source)[:, :, 0, 0].numpy() != 0)
        return model(x).numpy(), decisions


def compute(mod: tvm.IRModule, lowering: str, arguments: list[np.ndarray]) -> list[np.ndarray]:
    """Results of the compiled network, in memory that held other numbers before."""
    machine = relax.VirtualMachine(
        pipeline.build(pipeline.lower(mod, quick_host(), lowering), quick_host()), tvm.cpu()
    )
    dirt = np.where(arguments[0] > 0, np.float32(1e30), np.float32(np.nan))
    machine["main"](*map(tvm.runtime.tensor, [dirt, *arguments[1:]]))
    result = machine["main"](*map(tvm.runtime.tensor, arguments))
    return [r.numpy() for r in ([result] if hasattr(result, "numpy") else result)]


def quick_host() -> Soc:
    """This machine, compiled for without LLVM's optimisations: a third of the time."""
    host = load_soc("host")
    return replace(host, target={**host.target, "opt-level": 0})


@settings(max_examples=12, **SETTINGS)
@given(networks())
def test_random_networks(network):
    check(network)


@pytest.mark.slow
@settings(max_examples=150, **SETTINGS)
@given(networks())
def test_many_random_networks(network):
    check(network)
