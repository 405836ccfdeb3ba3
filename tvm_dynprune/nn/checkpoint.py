# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder of safetensors and JSON; nothing in it is executed when it is read.

::

    weights.safetensors     the network's state dict, gates included
    checkpoint.json         how to build the network, how it was trained, what it reached
    training.safetensors    all that ``resume`` needs; may be deleted after training
    log.jsonl               one line per epoch, for people and plots
"""

import dataclasses
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tvm_dynprune.errors import CheckpointError, ModelError
from tvm_dynprune.files import write_atomic
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.networks import build_network

FORMAT_VERSION = 1
WEIGHTS, INFO = "weights.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class CheckpointInfo:
    """What ``checkpoint.json`` says.

    Attributes
    ----------
    network
        A key of `tvm_dynprune.nn.networks.NETWORKS`.
    classes
        Class names in label order.
    mean, std
        Normalisation per channel, of images in [0, 1].
    gate
        Kind of gate, or None for a dense network.
    group_size, include, exclude
        As for `insert_gates`.
    epoch
        Epochs trained.
    config
        The training's settings.
    history
        One record per epoch.
    test
        Final figures on the test images, once training has ended.
    versions
        Of Python, PyTorch and this package, when it was saved.
    """

    network: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gate: str | None = None
    group_size: int = 1
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    epoch: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    test: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def current_versions() -> dict[str, str]:
    """Return the versions of what training depends on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        versions["tvm_dynprune"] = version("tvm_dynprune")
    except PackageNotFoundError:  # run from the source tree, not installed
        versions["tvm_dynprune"] = "unknown"
    return versions


def build_from(info: CheckpointInfo) -> nn.Module:
    """Build the network that a checkpoint describes, with random weights."""
    model = build_network(info.network, classes=len(info.classes), mean=info.mean, std=info.std)
    if info.gate is None:
        return model
    return insert_gates(model, info.gate, info.group_size, info.include, info.exclude)


def save_checkpoint(path: Path, model: nn.Module, info: CheckpointInfo) -> None:
    """Write weights and JSON into the folder `path`; each file is whole or as it was before."""
    save_tensors(path / WEIGHTS, dict(model.state_dict()))
    content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(info)}
    write_text(path / INFO, json.dumps(content, indent=1) + "\n")


def load_checkpoint(path: Path) -> tuple[nn.Module, CheckpointInfo]:
    """Read a checkpoint folder.

    Returns
    -------
    tuple
        The network in evaluation mode with hard gates, and what the JSON says.

    Raises
    ------
    CheckpointError
        There is no checkpoint, it is damaged or of another format version, its weights belong to
        another network, or contain NaN or infinity.
    """
    path = Path(path)
    info = load_info(path)
    try:
        model = build_from(info)
    except ModelError as error:
        raise CheckpointError(f"{path / INFO}: {error}") from error
    load_weights(model, load_tensors(path / WEIGHTS), path / WEIGHTS, info.network)
    return model.eval(), info


def load_info(path: Path) -> CheckpointInfo:
    """Read and check ``checkpoint.json`` of the folder `path`.

    Raises
    ------
    CheckpointError
        There is none, it is damaged, or of another format version.
    """
    file = path / INFO
    if not file.is_file():
        raise CheckpointError(f"{path}: no checkpoint: {INFO} is missing; give the --out of train")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = content.pop("format_version")
        if found == FORMAT_VERSION:
            return _info_from(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: damaged ({type(error).__name__}: {error}): restore it or train again"
        ) from error
    raise CheckpointError(
        f"{file}: format version {found}, this program reads {FORMAT_VERSION}: "
        "use the version that wrote it"
    )


def _info_from(content: dict[str, Any]) -> CheckpointInfo:
    lists = ("classes", "mean", "std", "include", "exclude", "history")
    for name in lists:
        if content.get(name) is not None:
            content[name] = tuple(content[name])
    return CheckpointInfo(**content)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], file: Path, network: str) -> None:
    """Copy weights into a model after checking names, shapes and values.

    Raises
    ------
    CheckpointError
        Names the first tensor that is missing, not expected, of another shape, or not finite.
    """
    own = model.state_dict()
    advice = f"these are weights of another network than {network}"
    for name, tensor in own.items():
        if name not in weights:
            raise CheckpointError(f"{file}: no tensor {name}: {advice}")
        if weights[name].shape != tensor.shape:
            have, want = list(weights[name].shape), list(tensor.shape)
            raise CheckpointError(f"{file}: {name} has shape {have}, expected {want}: {advice}")
    for name, tensor in weights.items():
        if name not in own:
            raise CheckpointError(f"{file}: unexpected tensor {name}: {advice}")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{file}: {name} has NaN or infinite values: train again")
    model.load_state_dict(dict(weights))


def save_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically."""
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with write_atomic(file) as temporary:
        save_file(plain, temporary, metadata=metadata)


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises
    ------
    CheckpointError
        It is missing or damaged.
    """
    if not file.is_file():
        raise CheckpointError(f"{file.parent}: no checkpoint: {file.name} is missing")
    try:
        return load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged ({error}): restore it or train again") from error


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically."""
    with write_atomic(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
