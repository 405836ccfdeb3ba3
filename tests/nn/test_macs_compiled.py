# SPDX-License-Identifier: Apache-2.0
"""The compiler executes as many MACs as the training counts, for each input."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from tests.kernels.util import quick_host
from tests.nn.small_networks import (
    Chain,
    ChannelsLast,
    Decoder,
    Fire,
    Grouped,
    Inverted,
    Padded,
    Residual,
    Squeezed,
    decide,
    executed,
)
from tvm_dynprune.compiler import compile
from tvm_dynprune.frontend import from_exported
from tvm_dynprune.frontend.model import Model
from tvm_dynprune.nn.export import export
from tvm_dynprune.nn.forced import forced_network
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.macs import count_macs, plan_macs
from tvm_dynprune.nn.networks import network_spec
from tvm_dynprune.nn.recording import recorded_masks
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.expose_gates import gate_infos
from tvm_dynprune.passes.layer_macs import layer_macs
from tvm_dynprune.runtime.macs import executed_macs
from tvm_dynprune.runtime.session import Session

MODELS = (Chain, Residual, Fire, Inverted, Squeezed, Grouped, Decoder, ChannelsLast, Padded)


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).random((count, *shape), dtype="float32")


def program_of(model: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    return export(model, torch.rand(2, *shape))


def test_session_counts_as_we_do(tmp_path: Path) -> None:
    model = forced_network("fashion_cnn", torch.rand(4, 1, 28, 28), group_size=8, open_fraction=0.5)
    program = program_of(model, (1, 28, 28))

    def reference(x: np.ndarray) -> list[np.ndarray]:
        return [program.module()(torch.from_numpy(x)).detach().numpy()]

    imported = Model("fashion_cnn", from_exported(program), reference)
    session = Session(compile(imported, quick_host(), tmp_path / "a", lowering="indexed"))
    x = pixels(6, 1, 28, 28)
    session.run(x)
    wanted = count_macs(model, torch.from_numpy(x)).executed_total
    assert session.macs.tolist() == wanted.tolist()
    assert len(set(wanted.tolist())) > 1, "the images should differ in cost"


def compiled_macs(model: nn.Module, x: np.ndarray) -> np.ndarray:
    """MACs as the compiler's analysis of the imported network counts them, without building it."""
    mod = from_exported(program_of(model, x.shape[1:]))
    mod = tvm.transform.Sequential(pipeline.simplify_passes())(mod)
    annotated = pipeline.annotate(mod)
    main = annotated["main"]
    layers = layer_macs(main, dict(annotated.functions_items()))
    with torch.no_grad(), recorded_masks(model) as masks:
        model(torch.from_numpy(x))
    decided = [masks[f"gates.{info.layer}"].numpy() != 0 for info in gate_infos(main)]
    return executed_macs(layers, decided)


def half_open(model: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Gates that decide at random, whatever the input."""
    torch.manual_seed(seed)
    gated = insert_gates(model(), group_size=2, first=True).eval()
    for name, gate in gates_of(gated).items():
        groups = torch.randint(0, 2, (gate.groups,)).tolist()
        decide(gated, {name.removeprefix("gates."): groups})
        # Equal weights on one input would be computed once only.
        nn.init.normal_(gate.conv.weight, std=1e-6)
    return gated


@pytest.mark.parametrize("model", MODELS)
def test_compiler_counts_small_networks_as_we_do(model: Callable[[], nn.Module]) -> None:
    gated = half_open(model, 3)
    x = pixels(1, 3, 6, 6)
    assert compiled_macs(gated, x).tolist() == [sum(executed(gated).values())]


@pytest.mark.parametrize(
    ("name", "group_size"),
    [("resnet20", 4), pytest.param("resnet20", 16, marks=pytest.mark.slow)],
)
def test_compiler_counts_as_we_do(name: str, group_size: int) -> None:
    channels, height, width = network_spec(name).input_shape
    x = pixels(3, channels, min(height, 64), min(width, 64))
    model = forced_network(name, torch.from_numpy(x), group_size=group_size, open_fraction=0.5)
    wanted = count_macs(model, torch.from_numpy(x)).executed_total
    assert compiled_macs(model, x).tolist() == wanted.tolist()
    assert wanted.max() < plan_macs(model, x.shape[1:]).dense_total
