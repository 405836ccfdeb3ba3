# SPDX-License-Identifier: Apache-2.0
"""What is benchmarked: an artifact, its images, and the network as other engines take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_dynprune.bench.forced import (
    Forced,
    Gating,
    compile_forced,
    force_gates,
    outputs,
    write_for_peers,
)
from tvm_dynprune.bench.inputs import random_images
from tvm_dynprune.compiler import compile
from tvm_dynprune.frontend.model import load_model
from tvm_dynprune.kernels.tuned import TunedKernel
from tvm_dynprune.runtime import Artifact
from tvm_dynprune.soc import load_soc

DENSE, MASKED = "dense", "masked"


@dataclass(frozen=True)
class Originals:
    """A network "dense" and "masked", of which there may be one only.

    Attributes
    ----------
    write
        Into a folder; returns ONNX files. PyTorch takes the ``.pt2`` beside one.
    outputs
        From images (N, C, H, W) float32 to what the network's own framework computes, (N, classes).
    """

    write: Callable[[Path], Mapping[str, Path]]
    outputs: Mapping[str, Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class Subject:
    """What is benchmarked; `originals` is None where other engines have nothing to run."""

    artifact: Artifact
    images: np.ndarray  # (N, C, H, W) float32, N a multiple of the artifact's batch
    originals: Originals | None = None
    is_forced: bool = False


def forced_subject(forced: Forced, artifact: Artifact) -> Subject:
    """A network with forced gates, for other engines without them and masked."""
    networks = {DENSE: forced.dense, MASKED: forced.gated}

    def write(folder: Path) -> dict[str, Path]:
        files = {name: folder / f"{name}.onnx" for name in networks}
        for name, network in networks.items():
            write_for_peers(network, forced.name, files[name])
        return files

    computed = {
        name: lambda images, network=network: outputs(network, images)
        for name, network in networks.items()
    }
    return Subject(artifact, forced.images, Originals(write, computed), is_forced=True)


def load_subject(
    what: str,
    folder: Path,
    *,
    gating: Gating,
    inputs: int,
    soc: str,
    lowering: str,
    tuned: Mapping[str, TunedKernel] | None = None,
) -> Subject:
    """An artifact folder, a ``.onnx`` or ``.pt2`` file, or a network by name with forced gates.

    Raises
    ------
    ModelError
        There is no such network or file.
    """
    path, seed = Path(what), gating.seed
    if path.is_dir():
        artifact = Artifact.load(path)
        return Subject(artifact, _images(artifact, inputs, seed))
    if path.suffix in (".onnx", ".pt2"):
        model = load_model(path)
        artifact = compile(
            model, load_soc(soc), folder / "artifact", lowering=lowering, tuned=tuned
        )
        images, batch = _images(artifact, inputs, seed), artifact.manifest.input_shape[0]

        def computed(x: np.ndarray) -> np.ndarray:
            return np.concatenate([model.reference(p)[0] for p in np.split(x, len(x) // batch)])

        kind = MASKED if artifact.manifest.gates else DENSE
        originals = Originals(lambda _folder: {kind: path}, {kind: computed})
        return Subject(artifact, images, originals if path.suffix == ".onnx" else None)
    forced = force_gates(what, gating, inputs)
    artifact = compile_forced(forced, folder / "artifact", soc=soc, lowering=lowering, tuned=tuned)
    return forced_subject(forced, artifact)


def _images(artifact: Artifact, inputs: int, seed: int) -> np.ndarray:
    batch, *size = artifact.manifest.input_shape
    return random_images(inputs * batch, tuple(size), seed)
