# SPDX-License-Identifier: Apache-2.0
"""Training: task loss + gate loss with a budget of MACs, gates annealed from open to hard."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_dynprune.data import LabelledImages, has_split, load_images
from tvm_dynprune.errors import UserError
from tvm_dynprune.files import refuse_existing, remove
from tvm_dynprune.nn.average import WeightAverage
from tvm_dynprune.nn.batches import Batches, split
from tvm_dynprune.nn.checkpoint import INFO, read_info, save_checkpoint
from tvm_dynprune.nn.config import ACCURATE_THRESHOLD, TrainConfig
from tvm_dynprune.nn.device import CPU, autocast, find_device, mixed_precision, read_late
from tvm_dynprune.nn.distributed import (
    agreed,
    average_statistics,
    check_shares,
    process_group,
    rank,
    replicate,
    shared_mean,
    touch_gates,
    world_size,
)
from tvm_dynprune.nn.evaluate import evaluate, training_state
from tvm_dynprune.nn.gates import set_thresholds
from tvm_dynprune.nn.log import TrainingLog
from tvm_dynprune.nn.networks import network_spec
from tvm_dynprune.nn.optimizer import (
    make_optimizer,
    read_momentum,
    restore_momentum,
    set_learning_rate,
)
from tvm_dynprune.nn.schedule import GateSchedule, accuracy_wanted
from tvm_dynprune.nn.start import start_training
from tvm_dynprune.nn.teacher import distillation_loss

logger = logging.getLogger(__name__)

_LOOK = 30  # steps between looks at the gates, for the progress line; at threshold 0: 3 divides it


def train(
    config: TrainConfig,
    out: Path,
    *,
    device: str = "auto",
    tensorboard: bool = False,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Train a network and write a checkpoint after every epoch.

    On a CPU the same configuration gives the same weights, also when interrupted and resumed:
    whatever is random in an epoch is drawn from (seed, epoch). Started by ``torchrun``, the
    processes share every batch, and the first of them writes.

    Parameters
    ----------
    device
        As for `find_device`.
    tensorboard
        Write ``out/tensorboard`` too.

    Raises
    ------
    OutputExistsError
        `out` exists, and neither `resume` nor `force` is given.
    DataError
        The data is not there or has images that the network does not take.
    CheckpointError
        `resume` with no checkpoint, or one of another configuration; or a full disk.
    ToolError
        `tensorboard` is not installed.
    UserError
        There is no such device, the loss became NaN, or the user interrupted; the message says how
        to go on.
    """
    place = find_device(device)
    with process_group(place):
        with agreed():
            check_shares(config.batch_size)
            if not resume and rank() == 0:
                refuse_existing(out, force=force)
            log = TrainingLog(out, tensorboard=tensorboard)
            trainer = _Trainer(config, out, resume=resume, device=place, log=log)
            if not resume and rank() == 0:
                remove(out)
        try:
            trainer.run()
        except KeyboardInterrupt:
            raise UserError(_interrupted(config, out)) from None
        finally:
            trainer.replica = trainer.model  # or it would outlive the process group


def _interrupted(config: TrainConfig, out: Path) -> str:
    if not (out / INFO).is_file():
        return f"interrupted in epoch 1 of {config.epochs}: no checkpoint yet; start again"
    saved = read_info(out).epoch
    return (
        f"interrupted in epoch {min(saved + 1, config.epochs)} of {config.epochs}: epoch {saved} "
        f"is in {out}; the same command with --resume continues"
    )


class _Trainer:
    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        *,
        resume: bool,
        device: torch.device = CPU,
        log: TrainingLog | None = None,
    ) -> None:
        self.config, self.out, self.device = config, out, device
        self.log = log or TrainingLog(out)
        usual = network_spec(config.network).input_shape
        training, self.validation = split(
            Path(config.data), usual, held=config.validation, batch_size=config.batch_size
        )
        start = start_training(config, training, out if resume else None)
        self.info, self.plan = start.info, start.plan
        self.teacher = None if start.teacher is None else start.teacher.to(device)
        self.model = start.model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.replica = self.model
        self.optimizer = make_optimizer(self.model, config)
        self.average = WeightAverage(self.model, config.average)
        if start.state is not None:
            restore_momentum(self.model, self.optimizer, start.state.momentum)
            self.average.restore(start.state.average, start.state.steps)
        self.schedule = GateSchedule(self.plan, **_gate_options(config))
        self.batches = Batches(
            training, config.batch_size, seed=config.seed, shift=config.shift, device=device
        )
        self.precision = mixed_precision(device) if config.bf16 else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        self.gates_now: tuple[float, float] | None = None

    def run(self) -> None:
        """Train the epochs that are left, then evaluate on the test images if there are any."""
        self.replica = replicate(self.model, self.device)
        if rank() == 0:
            kind = str(self.precision or torch.float32).removeprefix("torch.")
            logger.info("training on %s in %s, processes: %s", self.device, kind, world_size())
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        total = self.config.epochs * len(self.batches)
        with Progress(*columns, disable=rank() > 0) as progress:
            done = self.info.epoch * len(self.batches)
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

    def _evaluate(self, data: LabelledImages, name: str) -> dict[str, Any]:
        """Measure the averaged weights at threshold 0 and, if trained for it, at the lowest."""
        arguments = data, self.plan, self.config.latency
        with self.average.applied(self.model):
            found = evaluate(self.model, *arguments)
            record: dict[str, Any] = found.record(f"{name}_")
            if self.config.accurate_budget is not None:
                set_thresholds(self.model, ACCURATE_THRESHOLD)
                record |= evaluate(self.model, *arguments).record(f"{name}_accurate_")
                set_thresholds(self.model, 0.0)
        if name == "validation" and found.gates:
            record["gates"] = {gate: round(share, 4) for gate, share in found.gates.items()}
        return record

    def _last(self) -> dict[str, Any]:
        return self.info.history[-1] if self.info.history else {}

    def _finish_epoch(self, record: dict[str, Any]) -> None:
        """Add a record to the history, and write checkpoint and logs."""
        self.info.history = [r for r in self.info.history if r["epoch"] != record["epoch"]]
        self.info.history.append(record)
        self.info.epoch = record["epoch"]
        with agreed():
            if rank() == 0:
                momentum = read_momentum(self.model, self.optimizer)
                save_checkpoint(self.out, self.model, self.info, momentum, self.average)
                self.log.write(self.info.history)
                logger.info("%s", json.dumps({k: v for k, v in record.items() if k != "gates"}))

    def _epoch(self, epoch: int, advance: Callable[[str], None]) -> float:
        """Train one epoch and return its mean loss; `advance` is told of every step."""
        config, losses = self.config, []
        # Dropout and gates draw from this generator; processes draw differently.
        torch.manual_seed(config.seed * 10_007 + epoch + 1_000_003 * rank())
        self.model.train()
        for step, loss in enumerate(read_late(self._steps(epoch))):
            if not math.isfinite(loss):
                raise UserError(
                    f"loss is {loss} in epoch {epoch + 1}, step {step + 1}"
                    f"{_first_bad(self.model)}: train with a smaller --learning-rate"
                )
            losses.append(loss)
            advance(self._describe(epoch, float(np.mean(losses[-50:]))))
        return float(np.mean(losses))

    def _describe(self, epoch: int, loss: float) -> str:
        parts = [f"epoch {epoch + 1}/{self.config.epochs}", f"loss {loss:.3f}"]
        if self.info.history:
            parts.append(f"accuracy {self._last()['validation_accuracy']:.1%}")
        if self.gates_now is not None:
            parts.append("open {:.0%}  MACs {:.0%}".format(*self.gates_now))
        return "  ".join(parts)

    def _steps(self, epoch: int) -> Iterator[Tensor]:
        """Take the steps of an epoch; yield the loss of each."""
        config = self.config
        for step, (images, labels) in enumerate(self.batches.epoch(epoch)):
            done = (epoch * len(self.batches) + step) / (config.epochs * len(self.batches))
            loss = self._step(images, labels, done, accuracy_wanted(step))
            if config.gate is not None and step % _LOOK == 0:
                is_open = done < config.warm_up
                self.gates_now = (1, 1) if is_open else training_state(self.model, self.plan)
            yield loss

    def _step(self, images: Tensor, labels: Tensor, done: float, accurate: float = 0.0) -> Tensor:
        """Take one step after the share `done` of the training; return its loss."""
        config = self.config
        self.schedule.set(self.model, done, accurate)
        set_learning_rate(self.optimizer, config.learning_rate, done)
        with autocast(self.device, self.precision):
            logits = self.replica(images)
        loss = self._task_loss(images, labels, logits.float())
        if config.gate is not None:
            loss = loss + self.schedule.loss(self.model)
        if world_size() > 1:
            loss = loss + touch_gates(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        average_statistics(self.model)
        self.schedule.finish(self.model)
        self.average.update(self.model)
        return shared_mean(loss.detach())

    def _task_loss(self, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        config = self.config
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        if self.teacher is None or config.distill == 0:
            return loss
        with torch.no_grad(), autocast(self.device, self.precision):
            wanted = self.teacher(images).float()
        return torch.lerp(loss, distillation_loss(logits, wanted), config.distill)


def _gate_options(config: TrainConfig) -> dict[str, Any]:
    names = (
        "budget accurate_budget latency gain gate_weight floor stuck_weight warm_up anneal slope"
    )
    return {name: getattr(config, name) for name in names.split()}


def _first_bad(model: nn.Module) -> str:
    """Name the first layer whose weights or gradients are not finite."""
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if not torch.isfinite(parameter).all() or (
            gradient is not None and not torch.isfinite(gradient).all()
        ):
            return f", first in layer {name.rsplit('.', 1)[0]}"
    return ""
