# SPDX-License-Identifier: Apache-2.0
"""Training: task loss and gate loss to a MAC budget, resumable to the same result."""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_dynprune.data import LabelledImages, has_split, load_images
from tvm_dynprune.errors import CheckpointError, DataError, UserError
from tvm_dynprune.files import refuse_existing, remove
from tvm_dynprune.nn.batches import (
    ImageSet,
    as_tensors,
    epoch_seed,
    split_validation,
    training_batches,
)
from tvm_dynprune.nn.checkpoint import (
    CheckpointInfo,
    build_from,
    current_versions,
    load_info,
    save_checkpoint,
    write_text,
)
from tvm_dynprune.nn.evaluate import Evaluation, evaluate
from tvm_dynprune.nn.gates import gates_of, set_gates
from tvm_dynprune.nn.loss import gate_loss
from tvm_dynprune.nn.macs import MacPlan, plan_macs
from tvm_dynprune.nn.networks import network_spec
from tvm_dynprune.nn.resume import load_training_state, save_training_state
from tvm_dynprune.nn.schedule import gate_schedule, learning_rate

Precision = Literal["auto", "bf16", "fp32"]
_log = logging.getLogger(__name__)
_MOMENTUM = 0.9


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training; together with the data they decide its result.

    Attributes
    ----------
    data
        Directory that `tvm_dynprune.data.load_images` reads.
    out
        Checkpoint folder to write.
    network
        A key of `tvm_dynprune.nn.networks.NETWORKS`.
    gate
        Kind of gate; None trains the dense network.
    group_size, include, exclude
        As for `insert_gates`.
    budget
        Wanted share of the dense MACs, in (0, 1].
    epochs, batch_size
        Passes over the training images, and images per step.
    lr
        Peak learning rate of the weights, and `gate_lr` of the gates.
    weight_decay
        Of convolution and linear weights, not of gates, biases and batch norm.
    gate_weight
        Weight of the gate loss beside the task loss.
    label_smoothing
        In [0, 1).
    flip
        Mirror training images at random; wrong for digits and text.
    validation
        Images of the train split held out to watch the training, at most a tenth of it.
    seed
        Decides initial weights, held-out images, order and augmentation.
    precision
        ``bf16`` (autocast), ``fp32``, or ``auto``: bf16 where the CPU has instructions for it.
    """

    data: Path
    out: Path
    network: str = "fashion_cnn"
    gate: str | None = "lkam"
    group_size: int = 8
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    budget: float = 0.35
    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.1
    gate_lr: float = 0.1
    weight_decay: float = 5e-4
    gate_weight: float = 10.0
    label_smoothing: float = 0.05
    flip: bool = True
    validation: int = 5000
    seed: int = 0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.budget <= 1:
            raise UserError(f"budget {self.budget}: it is a share of the dense MACs, in (0, 1]")
        for name in ("epochs", "batch_size", "validation"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: it must be at least 1")


def saved_config(out: Path) -> TrainConfig:
    """Return the settings that the checkpoint in `out` was trained with.

    Raises
    ------
    CheckpointError
        There is no checkpoint, it is damaged, or was not written by `train`.
    """
    content = dict(load_info(out).config)
    try:
        for name in ("include", "exclude"):
            content[name] = None if content[name] is None else tuple(content[name])
        content["data"], content["out"] = Path(content["data"]), out
        return TrainConfig(**content)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{out}: no settings of a training in it: {error}") from error


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> CheckpointInfo:
    """Train a network, write a checkpoint after each epoch, and test it at the end.

    Parameters
    ----------
    config
        All settings.
    resume
        Continue from the last epoch saved in ``config.out`` to the result that an unbroken run
        reaches (bit by bit on the same machine with the same number of threads).
    force
        Remove what is in ``config.out`` first.
    console
        Where progress is shown; None shows none.

    Returns
    -------
    CheckpointInfo
        As saved: ``history`` has a record per epoch, ``test`` the figures on the test images (None
        if the data set has none).

    Raises
    ------
    OutputExistsError
        ``config.out`` exists, and neither `resume` nor `force` was asked for.
    CheckpointError
        `resume` without a checkpoint, with a damaged one, or with other settings.
    DataError
        The data is missing or its images do not fit the network.
    UserError
        The loss is not finite, or the training was interrupted; the last epoch stays saved.
    """
    config = dataclasses.replace(config, precision=_resolve(config.precision))
    if resume:
        _check_same_settings(saved_config(config.out), config)
    else:
        refuse_existing(config.out, force=force)
    data = load_images(config.data, "train")
    _check_shape(data, config)
    if not resume:
        remove(config.out)
    with torch.random.fork_rng(devices=[]):
        run = _Run.start(config, data)
        if resume:
            run.restore()
        return run.to_the_end(console)


def _resolve(precision: Precision) -> Precision:
    if precision != "auto":
        return precision
    # Without these instructions PyTorch emulates bf16, several times slower than fp32.
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def _check_same_settings(saved: TrainConfig, asked: TrainConfig) -> None:
    for field in dataclasses.fields(TrainConfig):
        before, now = getattr(saved, field.name), getattr(asked, field.name)
        if before != now and field.name not in ("data", "out"):
            raise CheckpointError(
                f"{asked.out}: was trained with {field.name} {before}, not {now}: "
                f"resume with {before}, or start anew with another --out"
            )


def _check_shape(data: LabelledImages, config: TrainConfig) -> None:
    shape, want = data.images.shape[1:], network_spec(config.network).input_shape
    if shape != want:
        raise DataError(
            f"{config.data}: images are {_times(shape)} (channels, height, width), "
            f"{config.network} takes {_times(want)}: choose another network or resize the images"
        )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


@dataclass
class _Run:
    """A training under way."""

    config: TrainConfig
    info: CheckpointInfo
    model: nn.Module
    plan: MacPlan
    optimizer: torch.optim.Optimizer
    training: ImageSet
    held_out: ImageSet
    history: list[Mapping[str, Any]]

    @classmethod
    def start(cls, config: TrainConfig, data: LabelledImages) -> "_Run":
        """Build everything from the seed, before the first epoch."""
        pixels = as_tensors(data)
        training, held_out = split_validation(
            pixels, min(config.validation, max(1, len(data) // 10)), config.seed
        )
        if len(training) < config.batch_size:
            raise DataError(
                f"{config.data}: {len(training)} training images are less than one batch of "
                f"{config.batch_size}: choose a smaller --batch-size"
            )
        mean, std = _statistics(training.images)
        info = CheckpointInfo(
            network=config.network,
            classes=data.classes,
            mean=mean,
            std=std,
            gate=config.gate,
            group_size=config.group_size,
            include=config.include,
            exclude=config.exclude,
            config=_as_json(config),
            versions=current_versions(),
        )
        torch.manual_seed(config.seed)
        model = build_from(info).to(memory_format=torch.channels_last)
        plan = plan_macs(model, network_spec(config.network).input_shape)
        optimizer = _optimizer(model, config)
        return cls(config, info, model, plan, optimizer, training, held_out, [])

    def restore(self) -> None:
        """Go back to the last epoch saved."""
        done = load_training_state(self.config.out, self.model, self.optimizer, self.config.network)
        self.history = list(done.history)

    def to_the_end(self, console: Console | None) -> CheckpointInfo:
        """Train the epochs that are missing, then test."""
        steps = len(self.training) // self.config.batch_size
        try:
            with _progress(console) as progress:
                for epoch in range(len(self.history), self.config.epochs):
                    task = progress.add_task(self._title(epoch), total=steps)
                    self._epoch(epoch, steps, lambda task=task: progress.advance(task))
                    self._save()
            return self._finish()
        except KeyboardInterrupt as error:
            raise UserError(self._interrupted()) from error

    def _title(self, epoch: int) -> str:
        last = self.history[-1] if self.history else None
        reached = "" if last is None else f", {last['validation_accuracy']:.2%} so far"
        return f"epoch {epoch + 1} of {self.config.epochs}{reached}"

    def _interrupted(self) -> str:
        saved = len(self.history)
        if saved == 0:
            return f"{self.config.out}: interrupted before the end of epoch 1: nothing is saved"
        return (
            f"{self.config.out}: interrupted after epoch {saved} of {self.config.epochs}, "
            "which is saved: the same command with --resume continues"
        )
