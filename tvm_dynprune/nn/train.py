# SPDX-License-Identifier: Apache-2.0
"""Training: task loss + gate loss with a budget of MACs, gates annealed from open to hard."""

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_dynprune.data import has_split, load_images
from tvm_dynprune.errors import CheckpointError, UserError
from tvm_dynprune.files import refuse_existing, remove
from tvm_dynprune.nn.batches import batches, evaluate, split
from tvm_dynprune.nn.checkpoint import (
    INFO,
    LOG,
    CheckpointInfo,
    load_resume_state,
    read_info,
    save_checkpoint,
)
from tvm_dynprune.nn.gates import gates_of, set_gates
from tvm_dynprune.nn.loss import gate_loss
from tvm_dynprune.nn.macs import plan_macs
from tvm_dynprune.nn.networks import network_spec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults train the demo's network.

    Attributes
    ----------
    budget
        Wanted share of the dense MACs, in (0, 1]; without a meaning for a dense network.
    warm_up, anneal
        Shares of the training in which gates stay open, and in which the budget then falls from 1
        to its value while the sigmoid's slope rises.
    gate_learning_rate
        Of the gates, as a factor: decisions that change slowly can be followed by the network.
    floor
        Mean open fraction below which a gate is pushed open again, so that no layer dies.
    """

    network: str
    data: str
    gate: str | None = "lkam"
    group_size: int = 8
    budget: float = 0.35
    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    gate_weight: float = 5.0
    floor: float = 0.15
    gate_learning_rate: float = 0.2
    warm_up: float = 0.1
    anneal: float = 0.25
    slope: tuple[float, float] = (1.0, 3.0)
    validation: int = 5000
    bf16: bool = True
    seed: int = 0


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
        momentum: dict[str, Tensor] = {}
        if resume:
            self.model, self.info, momentum = _resumed(config, out)
        else:
            self.model = self.info.build()
            _spread_gates(self.model)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = _optimizer(self.model, config)
        _restore_momentum(self.model, self.optimizer, momentum)
        self.plan = plan_macs(self.model, shape)
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
                record |= evaluate(self.model, self.validation, self.plan, prefix="validation_")
                record["seconds"] = round(time.perf_counter() - started, 1)
                self._finish_epoch(record)
        if has_split(Path(self.config.data), "test") and "test_accuracy" not in self._last():
            test = load_images(Path(self.config.data), "test", classes=self.info.classes)
            self._finish_epoch(self._last() | evaluate(self.model, test, self.plan, prefix="test_"))

    def _last(self) -> dict:
        return self.info.history[-1] if self.info.history else {}

    def _finish_epoch(self, record: dict) -> None:
        """Add a record to history and log, and write the checkpoint."""
        self.info.history = [r for r in self.info.history if r["epoch"] != record["epoch"]]
        self.info.history.append(record)
        self.info.epoch = record["epoch"]
        momentum = _momentum(self.model, self.optimizer)
        save_checkpoint(self.out, self.model, self.info, momentum)
        with (self.out / LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        logger.info("%s", json.dumps(record))

    def _epoch(self, epoch: int, advance) -> float:
        config, losses = self.config, []
        seed = config.seed * 10_007 + epoch
        torch.manual_seed(seed)  # dropout draws from the global generator
        data = batches(self.training, config.batch_size, torch.Generator().manual_seed(seed))
        self.model.train()
        for step, (images, labels) in enumerate(data):
            done = (epoch * self.steps_per_epoch + step) / (config.epochs * self.steps_per_epoch)
            loss = self._step(images, labels, done)
            if not math.isfinite(loss):
                raise UserError(
                    f"loss is {loss} in epoch {epoch + 1}, step {step + 1}"
                    f"{_first_bad(self.model)}: train with a smaller --learning-rate"
                )
            losses.append(loss)
            advance(f"epoch {epoch + 1}/{config.epochs}  loss {np.mean(losses[-50:]):.3f}")
        return float(np.mean(losses))

    def _step(self, images: Tensor, labels: Tensor, done: float) -> float:
        config = self.config
        annealed = min(1.0, max(0.0, (done - config.warm_up) / config.anneal))
        slope = config.slope[0] * (config.slope[1] / config.slope[0]) ** annealed
        is_open = done < config.warm_up
        set_gates(self.model, "open" if is_open else "hard", slope=slope)
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * config.learning_rate * learning_rate_factor(done)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        if config.gate is not None and not is_open:
            budget = 1 + (config.budget - 1) * annealed
            wanted = gate_loss(self.model, self.plan, budget)
            loss = loss + config.gate_weight * (wanted + floor_loss(self.model, config.floor))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def floor_loss(model: nn.Module, floor: float) -> Tensor:
    """Sum over gates of (floor - mean open fraction) squared, where that is positive."""
    means = [g.switches.mean() for g in gates_of(model).values() if g.switches is not None]
    return (floor - torch.stack(means)).clamp(min=0).square().sum()


def _spread_gates(model: nn.Module) -> None:
    """Give gates small random weights and spread biases.

    Equal groups would all close in the same step, and with them the whole layer.
    """
    for gate in gates_of(model).values():
        nn.init.normal_(gate.conv.weight, std=gate.conv.in_channels**-0.5)
        with torch.no_grad():
            assert gate.conv.bias is not None
            gate.conv.bias.add_(torch.linspace(-1.5, 1.5, gate.groups))


def learning_rate_factor(done: float) -> float:
    """One cycle: up linearly over the first fifth, down to 0 by a cosine; `done` in [0, 1]."""
    if done < 0.2:
        return 0.1 + 0.9 * done / 0.2
    return 0.5 * (1 + math.cos(math.pi * (done - 0.2) / 0.8))


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay for the weights of the network only."""
    named = list(model.named_parameters())
    gates = [p for name, p in named if name.startswith("gates.")]
    weights = [p for name, p in named if not name.startswith("gates.") and p.ndim > 1]
    others = [p for name, p in named if not name.startswith("gates.") and p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay, "factor": 1.0},
        {"params": others, "weight_decay": 0.0, "factor": 1.0},
        {"params": gates, "weight_decay": 0.0, "factor": config.gate_learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True)


def _momentum(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
        if optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
    }


def _restore_momentum(
    model: nn.Module, optimizer: torch.optim.Optimizer, momentum: dict[str, Tensor]
) -> None:
    for name, parameter in model.named_parameters():
        if name in momentum:
            restored = momentum[name].to(memory_format=torch.preserve_format)
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(
                restored
            )


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


def _resumed(config: TrainConfig, out: Path) -> tuple[nn.Module, CheckpointInfo, dict[str, Tensor]]:
    model, info, momentum = load_resume_state(out)
    wanted = _fresh_info(config, tuple(info.classes)).training
    different = sorted(k for k in wanted if k != "data" and wanted[k] != info.training.get(k))
    if different:
        key = different[0]
        raise CheckpointError(
            f"{out}: was trained with {key} = {info.training.get(key)}, not {wanted[key]}; resume "
            "with the same options"
        )
    return model, info, momentum


def _first_bad(model: nn.Module) -> str:
    """Name the first layer whose weights or gradients are not finite."""
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if not torch.isfinite(parameter).all() or (
            gradient is not None and not torch.isfinite(gradient).all()
        ):
            return f", first in layer {name.rsplit('.', 1)[0]}"
    return ""
