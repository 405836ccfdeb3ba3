# SPDX-License-Identifier: Apache-2.0
"""Networks with random weights and forced gates, as each engine takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvm_dynprune.bench.inputs import random_images
from tvm_dynprune.compiler import compile
from tvm_dynprune.errors import ToolError
from tvm_dynprune.frontend.model import Model
from tvm_dynprune.kernels.tuned import TunedKernel
from tvm_dynprune.runtime import Artifact
from tvm_dynprune.soc import load_soc

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Gating:
    """How the gates of a network are forced: by a MAC cut, else by a share of open groups."""

    group_size: int = 16
    open_fraction: float = 0.5
    mac_cut: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Forced:
    """A network with forced gates in PyTorch, and the same network without its gates."""

    name: str
    gated: nn.Module
    dense: nn.Module
    images: np.ndarray  # (N, C, H, W) float32, on which the gates are as open as was asked for


def force_gates(name: str, gating: Gating, inputs: int = 8) -> Forced:
    """Build one of the project's networks with random weights and gates forced on random images.

    Raises
    ------
    ModelError
        There is no such network.
    ToolError
        PyTorch is not installed.
    """
    try:
        import torch

        from tvm_dynprune.nn.forced import forced_network, network_with_mac_cut
        from tvm_dynprune.nn.networks import build_network, network_spec
    except ImportError:
        raise ToolError(
            f"bench {name}: networks by name need PyTorch: pip install 'tvm-dynprune[train]'"
        ) from None
    size, seed = gating.group_size, gating.seed
    images = random_images(inputs, network_spec(name).input_shape, seed)
    x = torch.from_numpy(images)
    if gating.mac_cut is not None:
        cut = gating.mac_cut
        gated, _ = network_with_mac_cut(name, x, group_size=size, mac_cut=cut, seed=seed)
    else:
        fraction = gating.open_fraction
        gated = forced_network(name, x, group_size=size, open_fraction=fraction, seed=seed)
    torch.manual_seed(seed)
    dense = build_network(name).eval()
    return Forced(name, gated, dense, images)


def compile_forced(
    forced: Forced,
    out: Path,
    *,
    soc: str,
    lowering: str,
    precision: str = "float32",
    tuned: Mapping[str, TunedKernel] | None = None,
) -> Artifact:
    """Compile the gated network, calibrated on its images, and with it the dense one."""
    return compile(
        forced_model(forced),
        load_soc(soc),
        out,
        lowering=lowering,
        precision=precision,
        calibration=forced.images,
        tuned=tuned,
    )


def forced_model(forced: Forced) -> Model:
    """The gated network as `compile` takes it, of batch 1."""
    import torch

    from tvm_dynprune.frontend import from_exported
    from tvm_dynprune.nn.export import export

    mod = from_exported(export(forced.gated, _example(forced.name, 2)), batch=1)

    def reference(x: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [forced.gated(torch.from_numpy(x)).numpy()]

    return Model(forced.name, mod, reference)


def write_for_peers(network: nn.Module, name: str, path: Path) -> None:
    """Write a network of batch 1 as ONNX, and as ``.pt2`` beside it."""
    import torch

    from tvm_dynprune.nn.export import quiet_torch, write_onnx

    program = torch.export.export(network.eval(), (_example(name, 1),))
    write_onnx(program, path)
    with quiet_torch():
        torch.export.save(program, path.with_suffix(".pt2"))


def outputs(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """PyTorch's outputs (N, classes) float32 for images (N, C, H, W), one by one."""
    import torch

    with torch.no_grad():
        return np.concatenate([network(x[None]).numpy() for x in torch.from_numpy(images)])


def _example(name: str, batch: int):
    import torch

    from tvm_dynprune.nn.networks import network_spec

    return torch.rand(batch, *network_spec(name).input_shape)
