# SPDX-License-Identifier: Apache-2.0
"""Random gated CNNs: all lowerings compute what the masked PyTorch module does."""

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from tvm import relax

from tests.kernels.util import quick_host
from tests.linked import virtual_machine
from tests.passes.util import results_of_both
from tests.random_networks import SETTINGS, Network, RandomNetwork, networks
from tvm_dynprune.frontend.exported import from_exported
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.expose_gates import gate_infos

TOLERANCE = 1e-4  # of the output's scale


def check(specification: Network) -> None:
    """Compile in four ways and compare outputs and decisions with PyTorch."""
    model = RandomNetwork(specification).eval()
    rng = np.random.default_rng(specification.seed)
    x = rng.standard_normal((specification.batch, 3, *specification.size)).astype("float32")
    expected, decisions = reference(model, torch.from_numpy(x))
    annotated = pipeline.annotate(from_exported(torch.export.export(model, (torch.from_numpy(x),))))
    infos = gate_infos(annotated["main"])
    assert len(infos) == len(decisions)
    thresholds = [info.threshold for info in infos if info.threshold is not None]
    arguments = [x, *[np.array(thresholds, "float32")] * bool(thresholds)]
    dense = machine(annotated, "dense")
    for lowering in ("dense", "if", "indexed", "auto"):
        network = dense if lowering == "dense" else machine(annotated, lowering)
        everything = [np.full_like(thresholds, -1e9) for thresholds in arguments[1:]]
        results_of_both(network, [x, *everything])  # opens what the next call must find closed
        # NaN in the memory that is used next
        results_of_both(dense, [np.full_like(x, np.nan), *arguments[1:]])
        out, *opened = results_of_both(network, arguments)
        scale = max(float(np.abs(expected).max()), 1e-3)
        # Only auto chooses Winograd, which rounds more.
        tolerance = 10 * TOLERANCE if lowering == "auto" else TOLERANCE
        assert np.abs(out - expected).max() <= tolerance * scale, lowering
        decided = [np.concatenate(decisions, axis=1)] if decisions else []
        for got, wanted in zip(opened, decided, strict=True):
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


def machine(mod: tvm.IRModule, lowering: str) -> relax.VirtualMachine:
    quick = quick_host()
    return virtual_machine(
        pipeline.build(pipeline.lower(pipeline.choose(mod, quick, lowering), quick), quick)
    )


@settings(max_examples=4, **SETTINGS)
@given(networks())
def test_random_networks(network):
    check(network)


@pytest.mark.slow
@settings(max_examples=100, **SETTINGS)
@given(networks())
def test_many_random_networks(network):
    check(network)
