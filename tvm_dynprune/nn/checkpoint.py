# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder of safetensors and JSON, nothing that could run code.

========================  ==========================================================================
``checkpoint.json``       network, classes, statistics, gates, training configuration, history
``weights.safetensors``   the state dict
``momentum.safetensors``  the optimiser's buffers, for ``--resume``
``log.jsonl``             one line per epoch
========================  ==========================================================================
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tvm_dynprune.errors import CheckpointError, ModelError
from tvm_dynprune.files import write_atomic
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.networks import NETWORKS, build_network

FORMAT = 1
INFO, WEIGHTS, MOMENTUM, LOG = (
    "checkpoint.json",
    "weights.safetensors",
    "momentum.safetensors",
    "log.jsonl",
)


@dataclass
class CheckpointInfo:
    """What a checkpoint says about its network and training; `gate` is None for a dense one."""

    network: str
    classes: list[str]
    mean: list[float]
    std: list[float]
    gate: str | None
    group_size: int | None
    training: dict[str, Any]
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def build(self) -> nn.Module:
        """Return the network with fresh weights, with gates if it has any."""
        model = build_network(self.network, classes=len(self.classes), mean=self.mean, std=self.std)
        if self.gate is None:
            return model
        return insert_gates(model, self.gate, self.group_size or 1)


def save_checkpoint(
    folder: Path, model: nn.Module, info: CheckpointInfo, momentum: dict[str, Tensor]
) -> None:
    """Write a checkpoint; interrupted while writing, the one before stays whole."""
    with (
        write_atomic(folder / INFO) as info_path,
        write_atomic(folder / MOMENTUM) as momentum_path,
        write_atomic(folder / WEIGHTS) as weights_path,
    ):
        for tensors, path in ((model.state_dict(), weights_path), (momentum, momentum_path)):
            save_file({name: value.contiguous() for name, value in tensors.items()}, path)
        info_path.write_text(json.dumps(asdict(info), indent=1) + "\n", encoding="utf-8")


def load_checkpoint(folder: Path) -> tuple[nn.Module, CheckpointInfo]:
    """Read a checkpoint into its network, in evaluation mode.

    Raises
    ------
    CheckpointError
        It is none, is damaged, belongs to another network, or holds NaN.
    """
    info = read_info(folder)
    weights = _read_tensors(folder / WEIGHTS)
    try:
        model = info.build()
    except (ModelError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / INFO}: damaged ({error}); use another checkpoint"
        ) from None
    _check_weights(folder, model, weights)
    model.load_state_dict(weights)
    return model.eval(), info


def load_momentum(folder: Path) -> dict[str, Tensor]:
    """Read the optimiser's buffers, by parameter name."""
    return _read_tensors(folder / MOMENTUM)


def read_info(folder: Path) -> CheckpointInfo:
    """Read ``checkpoint.json``.

    Raises
    ------
    CheckpointError
        There is none, or it is damaged or of another format.
    """
    path = folder / INFO
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no checkpoint (no {INFO}); `tvm-dynprune train` makes one"
        )
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        info = CheckpointInfo(**table)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); use another checkpoint") from None
    if info.format != FORMAT:
        raise CheckpointError(f"{path}: format {info.format}, this version reads {FORMAT}")
    if info.network not in tuple(NETWORKS):  # a list is no key
        raise CheckpointError(
            f"{path}: network {info.network!r} is not one of {', '.join(NETWORKS)}"
        )
    return info


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _check_weights(folder: Path, model: nn.Module, weights: dict[str, Tensor]) -> None:
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name not in weights:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} is missing: another network's weights?"
            )
        if weights[name].shape != value.shape:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} has shape {tuple(weights[name].shape)}, the network "
                f"{tuple(value.shape)}: another network's weights?"
            )
    unknown = sorted(set(weights) - set(wanted))
    if unknown:
        raise CheckpointError(f"{folder / WEIGHTS}: {unknown[0]} is no part of the network")
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{folder / WEIGHTS}: {name} holds NaN or infinity: train again")
