# SPDX-License-Identifier: Apache-2.0
"""Artifact: the folder that is deployed.

==================  ================================================================================
``library-*.so``    the compiled network; functions ``main`` (gated) and ``dense`` (its twin). The
                    name has its checksum, as a process that has loaded one file of a name never
                    loads another
``weights-*.bin``   what the functions take as their last argument; see `weights`
``manifest.json``   versions, target, signatures, gates, costs per layer, checksums
``reference.npz``   a few inputs, and the outputs that the model's own framework computed for them
==================  ================================================================================
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.errors import ArtifactError
from tvm_dynprune.files import sha256, write_atomic
from tvm_dynprune.runtime.weights import WeightPlace

FORMAT = 5
FUNCTIONS = ("main", "dense")
BY_KERNEL = "_by_kernel"  # ends the names of their twins that call kernel by kernel
MANIFEST, REFERENCE = "manifest.json", "reference.npz"


@dataclass(frozen=True)
class Gate:
    """One gate of a compiled network; `threshold` is None where there is none to change."""

    layer: str
    channels: int
    group_size: int
    threshold: float | None
    threshold_index: int | None

    @property
    def groups(self) -> int:
        """Number of channel groups."""
        return self.channels // self.group_size


@dataclass(frozen=True)
class OperatingPoint:
    """One setting of the thresholds, and what it was measured to give.

    Attributes
    ----------
    threshold_shift
        Added to every threshold that the network was trained with, in logits.
    accuracy
        Share of `images` that were classified correctly.
    mac_fraction
        Executed share of the dense MACs, mean over the images.
    images
        How many images it was measured on.
    """

    threshold_shift: float
    accuracy: float
    mac_fraction: float
    images: int


@dataclass(frozen=True)
class Manifest:
    """What is known about an artifact without loading its library.

    Attributes
    ----------
    precision
        "float32" or "float16": that of what lies between inputs and outputs.
    library, weights
        Names of the files.
    weight_places
        Where the tensors lie in the file of weights.
    layers, dense_layers
        What each convolution of ``main`` and ``dense`` costs; see `layer_macs`.
    choices
        How each convolution of ``main`` is computed, and why; see `ChooseAlgorithm`.
    points
        Operating points by name, as `calibrate` measured them; empty until then.
    kernels
        Function → kernel and layer of each of its calls, in order.
    """

    network: str
    soc: str
    target: dict[str, Any]
    features: list[str]
    lowering: str
    precision: str
    library: str
    weights: str
    weight_places: list[WeightPlace]
    input_shape: list[int]
    output_shapes: list[list[int]]
    classes: list[str]
    gates: list[Gate]
    layers: list[dict[str, Any]]
    dense_layers: list[dict[str, Any]]
    choices: list[dict[str, Any]]
    kernels: dict[str, list[list[str]]]
    unused_gates: dict[str, str]
    max_abs_error: float | None
    versions: dict[str, str]
    points: dict[str, OperatingPoint] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True)
class Artifact:
    """A verified artifact on disk."""

    path: Path
    manifest: Manifest

    @property
    def library(self) -> Path:
        """The file of compiled code."""
        return self.path / self.manifest.library

    @property
    def weights(self) -> Path:
        """The file of weights."""
        return self.path / self.manifest.weights

    @classmethod
    def load(cls, path: str | Path) -> "Artifact":
        """Read and verify an artifact.

        Raises
        ------
        ArtifactError
            It is none, is damaged, or was built by another version of TVM.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        _check_version(path, manifest)
        _check_files(path, manifest)
        return cls(path, manifest)

    def reference(self) -> dict[str, np.ndarray]:
        """Arrays ``input`` and ``output_<i>``."""
        with np.load(self.path / REFERENCE, allow_pickle=False) as arrays:
            return dict(arrays)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with the checksums of the files beside it."""
    table = asdict(manifest)
    table["checksums"] = {name: sha256(folder / name) for name in _files(manifest)}
    with write_atomic(folder / MANIFEST) as path:
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def store_points(artifact: Artifact, points: Mapping[str, OperatingPoint]) -> Artifact:
    """Replace the operating points in an artifact's manifest; return the artifact with them."""
    manifest = replace(artifact.manifest, points=dict(points))
    write_manifest(artifact.path, manifest)
    return Artifact(artifact.path, manifest)


def read_points(path: Path) -> dict[str, OperatingPoint]:
    """Read the points of a file that ``calibrate --json`` wrote.

    Raises
    ------
    ArtifactError
        It is no such file.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["points"]
        return {name: OperatingPoint(**point) for name, point in table.items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: no operating points ({type(error).__name__}: {error}); "
            "`tvm-dynprune calibrate --json` writes them"
        ) from None


def versions() -> dict[str, str]:
    """Versions that an artifact depends on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("tvm-dynprune", "apache-tvm", "apache-tvm-ffi")}


def _read_manifest(path: Path) -> Manifest:
    if not (path / MANIFEST).is_file():
        raise ArtifactError(
            f"{path}: no artifact (no {MANIFEST}); `tvm-dynprune compile` makes one"
        )
    try:
        table = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if table["format"] != FORMAT:
            raise ArtifactError(
                f"{path}: artifact format {table['format']}, this version reads {FORMAT}; compile "
                "the model again"
            )
        table["points"] = {k: OperatingPoint(**v) for k, v in table["points"].items()}
        table["weight_places"] = [WeightPlace(**place) for place in table["weight_places"]]
        table["gates"] = [Gate(**gate) for gate in table["gates"]]
        return Manifest(**{item.name: table[item.name] for item in fields(Manifest)})
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path / MANIFEST}: damaged ({type(error).__name__}: {error}); compile the model again"
        ) from None


def _files(manifest: Manifest) -> tuple[str, ...]:
    return manifest.library, manifest.weights, REFERENCE


def _check_version(path: Path, manifest: Manifest) -> None:
    here = versions()["apache-tvm"]
    built = manifest.versions.get("apache-tvm")
    if built != here:
        raise ArtifactError(
            f"{path}: built with TVM {built}, here is {here}; compile the model again"
        )


def _check_files(path: Path, manifest: Manifest) -> None:
    for name in _files(manifest):
        if not (path / name).is_file():
            raise ArtifactError(f"{path}: {name} is missing; compile the model again")
        if sha256(path / name) != manifest.checksums.get(name):
            raise ArtifactError(
                f"{path / name}: its bytes have changed since it was compiled; compile again"
            )
