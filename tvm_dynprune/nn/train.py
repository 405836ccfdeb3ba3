# SPDX-License-Identifier: Apache-2.0
"""Training: task loss + gate loss with a budget of MACs, gates annealed from open to hard."""

import json
import logging
import math
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_dynprune.data import LabelledImages, has_split, load_images
from tvm_dynprune.errors import CheckpointError, UserError
from tvm_dynprune.files import refuse_existing, remove
from tvm_dynprune.nn.average import WeightAverage
from tvm_dynprune.nn.batches import as_float, batches, evaluate, split
from tvm_dynprune.nn.checkpoint import (
    INFO,
    LOG,
    CheckpointInfo,
    ResumeState,
    load_resume_state,
    read_info,
    save_checkpoint,
)
from tvm_dynprune.nn.config import ACCURATE_THRESHOLD, TrainConfig
from tvm_dynprune.nn.gates import gates_of, set_thresholds
from tvm_dynprune.nn.macs import plan_macs
from tvm_dynprune.nn.networks import network_spec
from tvm_dynprune.nn.optimizer import (
    make_optimizer,
    read_momentum,
    restore_momentum,
    set_learning_rate,
)
from tvm_dynprune.nn.schedule import GateSchedule, accuracy_wanted
from tvm_dynprune.nn.teacher import copy_weights, distillation_loss, load_teacher

logger = logging.getLogger(__name__)


def train(config: TrainConfig, out: Path, *, resume: bool = False, force: bool = False) -> None:
    """Train a network and write a checkpoint after every epoch.

    The same configuration gives the same weights, also when interrupted and resumed: whatever is
    random in an epoch is drawn from (seed, epoch).

    Raises
    ------
    OutputExistsError
        `out` exists, and neither `resume` nor `force` is given.
    DataError
        The data is not there or has another image size than the network.
    CheckpointError
        `resume` with no checkpoint, or one of another configuration.
    UserError
        The loss became NaN, or the user interrupted; the message says how to go on.
    """
    if not resume:
        refuse_existing(out, force=force)
    trainer = _Trainer(config, out, resume=resume)
    if not resume:
        remove(out)
    try:
        trainer.run()
    except KeyboardInterrupt:
        raise UserError(_interrupted(config, out)) from None


def _interrupted(config: TrainConfig, out: Path) -> str:
    if not (out / INFO).is_file():
        return f"interrupted in epoch 1 of {config.epochs}: no checkpoint yet; start again"
    saved = read_info(out).epoch
    return (
        f"interrupted in epoch {min(saved + 1, config.epochs)} of {config.epochs}: epoch {saved} "
        f"is in {out}; the same command with --resume continues"
    )


class _Trainer:
    def __init__(self, config: TrainConfig, out: Path, *, resume: bool) -> None:
        self.config, self.out = config, out
        shape = network_spec(config.network).input_shape
        self.training, self.validation = split(
            Path(config.data), shape, held=config.validation, batch_size=config.batch_size
        )
        self.info = _fresh_info(config, self.training.classes)
        torch.manual_seed(config.seed)
        start = config.start
        self.teacher = None if start is None else load_teacher(Path(start), self.info)
        state = _resumed(config, out) if resume else None
        if state is None:
            self.model = self.info.build()
            _whiten(self.model, self.training)
            if self.teacher is not None:
                copy_weights(self.teacher, self.model)
            for gate in gates_of(self.model).values():
                gate.spread()
        else:
            self.model, self.info = state.model, state.info
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = make_optimizer(self.model, config)
        self.average = WeightAverage(self.model, config.average)
        if state is not None:
            restore_momentum(self.model, self.optimizer, state.momentum)
            self.average.restore(state.average, state.steps)
        self.plan = plan_macs(self.model, shape)
        self.schedule = GateSchedule(self.plan, **_gate_options(config))
        self.steps_per_epoch = len(self.training) // config.batch_size

    def run(self) -> None:
        """Train the epochs that are left, then evaluate on the test images if there are any."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        total = self.config.epochs * self.steps_per_epoch
        with Progress(*columns) as progress:
            done = self.info.epoch * self.steps_per_epoch
            task = progress.add_task("training", total=total, completed=done)
            for epoch in range(self.info.epoch, self.config.epochs):
                started = time.perf_counter()
                loss = self._epoch(
                    epoch, lambda text: progress.update(task, advance=1, description=text)
                )
                record = {"epoch": epoch + 1, "loss": round(loss, 4)}
                record |= self._evaluate(self.validation, "validation")
                record["seconds"] = round(time.perf_counter() - started, 1)
                self._finish_epoch(record)
        if has_split(Path(self.config.data), "test") and "test_accuracy" not in self._last():
            test = load_images(Path(self.config.data), "test", classes=self.info.classes)
            self._finish_epoch(self._last() | self._evaluate(test, "test"))

    def _evaluate(self, data: LabelledImages, name: str) -> dict[str, float]:
        """Measure the averaged weights at threshold 0 and, if trained for it, at the lowest."""
        with self.average.applied(self.model):
            latency = self.config.latency
            record = evaluate(self.model, data, self.plan, f"{name}_", latency)
            if self.config.accurate_budget is not None:
                set_thresholds(self.model, ACCURATE_THRESHOLD)
                record |= evaluate(self.model, data, self.plan, f"{name}_accurate_", latency)
                set_thresholds(self.model, 0.0)
        return record

    def _last(self) -> dict:
        return self.info.history[-1] if self.info.history else {}

    def _finish_epoch(self, record: dict) -> None:
        """Add a record to history and log, and write the checkpoint."""
        self.info.history = [r for r in self.info.history if r["epoch"] != record["epoch"]]
        self.info.history.append(record)
        self.info.epoch = record["epoch"]
        momentum = read_momentum(self.model, self.optimizer)
        save_checkpoint(self.out, self.model, self.info, momentum, self.average)
        with (self.out / LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        logger.info("%s", json.dumps(record))

    def _epoch(self, epoch: int, advance) -> float:
        config, losses = self.config, []
        torch.manual_seed(config.seed * 10_007 + epoch)  # dropout draws from this generator
        order = {"seed": config.seed, "epoch": epoch, "shift": config.shift}
        data = batches(self.training, config.batch_size, **order)
        self.model.train()
        for step, (images, labels) in enumerate(data):
            done = (epoch * self.steps_per_epoch + step) / (config.epochs * self.steps_per_epoch)
            loss = self._step(images, labels, done, accuracy_wanted(step))
            if not math.isfinite(loss):
                raise UserError(
                    f"loss is {loss} in epoch {epoch + 1}, step {step + 1}"
                    f"{_first_bad(self.model)}: train with a smaller --learning-rate"
                )
            losses.append(loss)
            advance(f"epoch {epoch + 1}/{config.epochs}  loss {np.mean(losses[-50:]):.3f}")
        return float(np.mean(losses))

    def _step(self, images: Tensor, labels: Tensor, done: float, accurate: float = 0.0) -> float:
        """Take one step after the share `done` of the training; return its loss."""
        config = self.config
        self.schedule.set(self.model, done, accurate)
        set_learning_rate(self.optimizer, config.learning_rate, done)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            logits = self.model(images)
        loss = self._task_loss(images, labels, logits.float())
        if config.gate is not None:
            loss = loss + self.schedule.loss(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.finish(self.model)
        self.average.update(self.model)
        return float(loss.detach())

    def _task_loss(self, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        config = self.config
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        if self.teacher is None or config.distill == 0:
            return loss
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            wanted = self.teacher(images).float()
        return torch.lerp(loss, distillation_loss(logits, wanted), config.distill)


def _gate_options(config: TrainConfig) -> dict[str, Any]:
    names = (
        "budget accurate_budget latency gain gate_weight floor stuck_weight warm_up anneal slope"
    )
    return {name: getattr(config, name) for name in names.split()}


def _whiten(model: nn.Module, training: LabelledImages) -> None:
    """Whiten the stem of a network that has one for it."""
    if callable(whiten := getattr(model, "whiten", None)):
        whiten(as_float(torch.from_numpy(training.images[:5000])))


def _fresh_info(config: TrainConfig, classes: tuple[str, ...]) -> CheckpointInfo:
    spec = network_spec(config.network)
    return CheckpointInfo(
        network=config.network,
        classes=list(classes),
        mean=list(spec.mean),
        std=list(spec.std),
        gate=config.gate,
        group_size=None if config.gate is None else config.group_size,
        training={**asdict(config), "slope": list(config.slope)},
        versions={name: version(name) for name in ("torch", "numpy")},
    )


def _resumed(config: TrainConfig, out: Path) -> ResumeState:
    state = load_resume_state(out)
    saved = state.info.training
    wanted = _fresh_info(config, tuple(state.info.classes)).training
    movable = ("data", "start")  # folders may have another name by now
    different = [k for k in wanted if k not in movable and wanted[k] != saved.get(k)]
    if different:
        key = different[0]
        raise CheckpointError(
            f"{out}: was trained with {key} = {_short(saved.get(key))}, not "
            f"{_short(wanted[key])}; resume with the same options"
        )
    return state


def _short(value: object) -> str:
    return shorten(str(value), 60, placeholder=" …")


def _first_bad(model: nn.Module) -> str:
    """Name the first layer whose weights or gradients are not finite."""
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if not torch.isfinite(parameter).all() or (
            gradient is not None and not torch.isfinite(gradient).all()
        ):
            return f", first in layer {name.rsplit('.', 1)[0]}"
    return ""
