# SPDX-License-Identifier: Apache-2.0
"""The one file from which a training continues: weights, momenta, epoch and history together.

One file, because several cannot be replaced at one moment: an interruption between two of them
would mix two epochs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tvm_dynprune.errors import CheckpointError
from tvm_dynprune.nn.checkpoint import load_tensors, load_weights, save_tensors

STATE = "training.safetensors"
_MODEL, _MOMENTUM = "model.", "momentum."


@dataclass(frozen=True)
class Progressed:
    """How far a training has come."""

    epoch: int
    history: tuple[Mapping[str, Any], ...]


def save_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, done: Progressed
) -> None:
    """Write the state after an epoch, atomically."""
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer")
        if isinstance(momentum, Tensor):
            tensors[_MOMENTUM + name] = momentum
    metadata = {"epoch": str(done.epoch), "history": json.dumps(done.history)}
    save_tensors(folder / STATE, tensors, metadata)


def load_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, network: str
) -> Progressed:
    """Put a saved state into a model and its SGD optimizer.

    Raises
    ------
    CheckpointError
        There is none, it is damaged, or belongs to another network.
    """
    file = folder / STATE
    tensors = load_tensors(file)
    load_weights(model, _below(tensors, _MODEL), file, network)
    momenta = _below(tensors, _MOMENTUM)
    for name, parameter in model.named_parameters():
        if name in momenta:
            buffer = torch.empty_like(parameter)
            optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(momenta[name])
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    try:
        return Progressed(int(metadata["epoch"]), tuple(json.loads(metadata["history"])))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged ({error}): train again") from error


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
