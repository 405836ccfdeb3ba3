# SPDX-License-Identifier: Apache-2.0
"""What a training starts from: a fresh network, a teacher's weights, or a checkpoint."""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten

import torch
from torch import nn

from tvm_dynprune.data import LabelledImages
from tvm_dynprune.errors import CheckpointError, DataError
from tvm_dynprune.nn.batches import as_float
from tvm_dynprune.nn.checkpoint import CheckpointInfo, ResumeState, load_resume_state
from tvm_dynprune.nn.config import TrainConfig
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.macs import MacPlan, plan_macs
from tvm_dynprune.nn.networks import network_spec
from tvm_dynprune.nn.teacher import copy_weights, load_teacher


@dataclass(frozen=True)
class Start:
    """What a training starts from, on the CPU.

    Attributes
    ----------
    teacher
        The dense network to learn from, if there is one.
    state
        With `resume`, what else the checkpoint holds.
    """

    model: nn.Module
    info: CheckpointInfo
    plan: MacPlan
    teacher: nn.Module | None
    state: ResumeState | None


def start_training(config: TrainConfig, data: LabelledImages, resume: Path | None) -> Start:
    """Build the network to train on `data`, or read it from the checkpoint `resume`.

    Raises
    ------
    DataError
        The network does not take images of this size.
    CheckpointError
        The checkpoint is none, or of another configuration or image size.
    """
    info = _fresh_info(config, data)
    torch.manual_seed(config.seed)
    teacher = None if config.start is None else load_teacher(Path(config.start), info)
    if resume is not None:
        state = _resumed(config, resume, info)
        return Start(
            state.model, state.info, _plan(state.model, state.info, config), teacher, state
        )
    model = info.build()
    plan = _plan(model, info, config)
    if callable(whiten := getattr(model, "whiten", None)):
        whiten(as_float(torch.from_numpy(data.images[:5000])))
    if teacher is not None:
        copy_weights(teacher, model)
    for gate in gates_of(model).values():
        gate.spread()
    return Start(model, info, plan, teacher, None)


def _fresh_info(config: TrainConfig, data: LabelledImages) -> CheckpointInfo:
    spec = network_spec(config.network)
    return CheckpointInfo(
        network=config.network,
        classes=list(data.classes),
        mean=list(spec.mean),
        std=list(spec.std),
        gate=config.gate,
        group_size=None if config.gate is None else config.group_size,
        training={**asdict(config), "slope": list(config.slope)},
        input_shape=list(data.images.shape[1:]),
        versions={name: version(name) for name in ("torch", "numpy")},
    )


def _plan(model: nn.Module, info: CheckpointInfo, config: TrainConfig) -> MacPlan:
    try:
        return plan_macs(model, info.shape)
    except RuntimeError:  # from a layer: the sizes do not fit
        _, height, width = info.shape
        _, *usual = network_spec(info.network).input_shape
        raise DataError(
            f"{config.data}: images of {width}x{height} do not fit {info.network}, which is for "
            f"{usual[1]}x{usual[0]}: resize them, or choose a network with global pooling"
        ) from None


def _resumed(config: TrainConfig, out: Path, fresh: CheckpointInfo) -> ResumeState:
    state = load_resume_state(out)
    saved, wanted = state.info.training, fresh.training
    movable = ("data", "start")  # folders may have another name by now
    different = [k for k in wanted if k not in movable and wanted[k] != saved.get(k)]
    if different:
        key = different[0]
        raise CheckpointError(
            f"{out}: was trained with {key} = {_short(saved.get(key))}, not "
            f"{_short(wanted[key])}; resume with the same options"
        )
    for what in ("classes", "shape"):
        before, now = getattr(state.info, what), getattr(fresh, what)
        if before != now:
            raise CheckpointError(
                f"{out}: was trained on images with {what} {_short(before)}, not {_short(now)}; "
                "resume with the same data"
            )
    return state


def _short(value: object) -> str:
    return shorten(str(value), 60, placeholder=" …")
