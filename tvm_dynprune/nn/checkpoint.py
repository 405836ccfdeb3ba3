# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder of safetensors and JSON, nothing that could run code.

========================  ==========================================================================
``checkpoint.json``       network, classes, statistics, gates, training configuration, history
``weights.safetensors``   the state dict
``resume.safetensors``    all of the above, the optimiser's momentum and the weights before
                          averaging in one file, for ``--resume``: it is of one epoch, whenever
                          the training was killed
``log.jsonl``             one line per epoch
``log.csv``               the same numbers as a table
========================  ==========================================================================
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tvm_dynprune.errors import CheckpointError, ModelError
from tvm_dynprune.files import write_atomic
from tvm_dynprune.nn.average import WeightAverage
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.networks import NETWORKS, build_network, network_spec

FORMAT = 1
INFO, WEIGHTS, RESUME, LOG = (
    "checkpoint.json",
    "weights.safetensors",
    "resume.safetensors",
    "log.jsonl",
)


@dataclass
class CheckpointInfo:
    """What a checkpoint says about its network and training.

    `gate` is None for a dense network; `input_shape` (C, H, W) is None in checkpoints of before it
    was kept: the network's usual one.
    """

    network: str
    classes: list[str]
    mean: list[float]
    std: list[float]
    gate: str | None
    group_size: int | None
    training: dict[str, Any]
    input_shape: list[int] | None = None
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images it is for."""
        if self.input_shape is None:
            return network_spec(self.network).input_shape
        channels, height, width = self.input_shape
        return channels, height, width

    def build(self) -> nn.Module:
        """Return the network with fresh weights, with gates if it has any."""
        model = build_network(self.network, classes=len(self.classes), mean=self.mean, std=self.std)
        if self.gate is None:
            return model
        return insert_gates(model, self.gate, self.group_size or 1)


@dataclass(frozen=True)
class ResumeState:
    """A training as its last whole epoch left it.

    Attributes
    ----------
    momentum
        By parameter name.
    average, steps
        `WeightAverage`'s values and its number of updates.
    """

    model: nn.Module
    info: CheckpointInfo
    momentum: dict[str, Tensor]
    average: dict[str, Tensor]
    steps: int


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    info: CheckpointInfo,
    momentum: dict[str, Tensor],
    average: WeightAverage,
) -> None:
    """Write a checkpoint; interrupted while writing, the one before stays whole.

    Raises
    ------
    CheckpointError
        It cannot be written, as on a full disk.
    """
    table = json.dumps(asdict(info), indent=1) + "\n"
    own = model.state_dict()
    parts = {"weights": own, "momentum": momentum, "average": average.values}
    state = {f"{part}/{name}": _plain(v) for part in parts for name, v in parts[part].items()}
    weights = {name: _plain(v) for name, v in (own | average.values).items()}
    try:
        with write_atomic(folder / RESUME) as path:
            save_file(state, path, {"info": table, "steps": str(average.steps)})
        with write_atomic(folder / INFO) as info_path, write_atomic(folder / WEIGHTS) as path:
            save_file(weights, path)
            info_path.write_text(table, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        before = f"the checkpoint of epoch {info.epoch - 1} is whole"
        raise CheckpointError(
            f"{folder}: epoch {info.epoch} cannot be written ({error}); "
            f"{before if info.epoch > 1 else 'there is none before'}: make room, then --resume"
        ) from None


def _plain(value: Tensor) -> Tensor:
    return value.cpu().contiguous()


def load_checkpoint(folder: Path) -> tuple[nn.Module, CheckpointInfo]:
    """Read a checkpoint into its network, in evaluation mode.

    Raises
    ------
    CheckpointError
        It is none, is damaged, belongs to another network, or holds NaN.
    """
    info = read_info(folder)
    return _load(folder / WEIGHTS, info, _read_tensors(folder / WEIGHTS)), info


def load_resume_state(folder: Path) -> ResumeState:
    """Read what `train` needs to go on from the last whole epoch.

    Raises
    ------
    CheckpointError
        There is no checkpoint, or it is damaged.
    """
    read_info(folder)  # says best what is wrong with a folder that is no checkpoint
    path = folder / RESUME
    state = _read_tensors(path)
    with safe_open(path, "pt") as stream:
        metadata = stream.metadata() or {}
    info = _parse_info(metadata.get("info", ""), path)
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "momentum": {}, "average": {}}
    for name, value in state.items():
        kind, _, parameter = name.partition("/")
        parts.setdefault(kind, {})[parameter] = value
    model = _load(path, info, parts["weights"])
    return ResumeState(model, info, parts["momentum"], parts["average"], int(metadata["steps"]))


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
        return _parse_info(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: damaged ({error}); use another checkpoint") from None


def _parse_info(text: str, path: Path) -> CheckpointInfo:
    try:
        info = CheckpointInfo(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); use another checkpoint") from None
    if info.format != FORMAT:
        raise CheckpointError(f"{path}: format {info.format}, this version reads {FORMAT}")
    if info.network not in tuple(NETWORKS):  # a list is no key
        raise CheckpointError(
            f"{path}: network {info.network!r} is not one of {', '.join(NETWORKS)}"
        )
    shape = info.input_shape
    if shape is not None and not (
        _is_shape(shape) and shape[0] == network_spec(info.network).input_shape[0]
    ):
        raise CheckpointError(f"{path}: damaged (input_shape {shape}); use another checkpoint")
    return info


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(size, int) and size > 0 for size in value)
    )


def _load(path: Path, info: CheckpointInfo, weights: dict[str, Tensor]) -> nn.Module:
    """Build the network, in evaluation mode, with weights that were read from `path`."""
    try:
        model = info.build()
    except (ModelError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path.parent / INFO}: damaged ({error}); use another checkpoint"
        ) from None
    _check_weights(path, model, weights)
    model.load_state_dict(weights)
    return model.eval()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _check_weights(path: Path, model: nn.Module, weights: dict[str, Tensor]) -> None:
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name not in weights:
            raise CheckpointError(f"{path}: {name} is missing: another network's weights?")
        if weights[name].shape != value.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, the network "
                f"{tuple(value.shape)}: another network's weights?"
            )
    unknown = sorted(set(weights) - set(wanted))
    if unknown:
        raise CheckpointError(f"{path}: {unknown[0]} is no part of the network")
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity: train again")
