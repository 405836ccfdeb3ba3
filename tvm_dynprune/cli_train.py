# SPDX-License-Identifier: Apache-2.0
"""``train`` and ``export``: the stages that need torch."""

import logging
from pathlib import Path
from typing import Annotated, Optional

import typer

from tvm_dynprune.errors import ToolError, UserError

Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]


def train(
    data: Annotated[Path, typer.Option(help="Folder with Fashion-MNIST, CIFAR-10 or classes.")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    model: Annotated[str, typer.Option(help="One of the project's networks.")] = "fashion_cnn",
    gate: Annotated[
        str, typer.Option(help="lkam, lkam_relu, squeeze, gumbel; none for the dense network.")
    ] = "lkam",
    group_size: Annotated[int, typer.Option(min=1)] = 8,
    budget: Annotated[float, typer.Option(help="Wanted share of the dense MACs.")] = 0.35,
    accurate_budget: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Share at the lowest threshold: learn for a range of thresholds."),
    ] = None,
    start: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Checkpoint of the same network without gates, to start from."),
    ] = None,
    distill: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of --start's predictions in the loss.")
    ] = 0.0,
    gate_learning_rate: Annotated[float, typer.Option(help="Of the gates, as a factor.")] = 0.2,
    epochs: Annotated[int, typer.Option(min=1)] = 12,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    learning_rate: Annotated[float, typer.Option()] = 0.05,
    momentum: Annotated[float, typer.Option(min=0, max=1)] = 0.9,
    weight_decay: Annotated[float, typer.Option(min=0)] = 5e-4,
    norm_bias_learning_rate: Annotated[
        float, typer.Option(help="Of batch norms' biases, as a factor.")
    ] = 1.0,
    average: Annotated[
        float, typer.Option(min=0, max=1, help="Decay of the weights' moving average.")
    ] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    force: Force = False,
) -> None:
    """Train a network with gates, or without; writes a checkpoint after every epoch."""
    need_torch("train")
    from tvm_dynprune.nn.train import TrainConfig, train as run

    logging.getLogger("tvm_dynprune.nn.train").setLevel(logging.INFO)
    for name, share in (("--budget", budget), ("--accurate-budget", accurate_budget)):
        if share is not None and not 0 < share <= 1:
            raise UserError(f"{name} {share}: a share of the dense MACs, above 0 and at most 1")
    if accurate_budget is not None and accurate_budget <= budget:
        raise UserError(f"--accurate-budget {accurate_budget}: it must be above --budget {budget}")
    if distill and start is None:
        raise UserError("--distill needs --start: the network whose predictions to learn from")
    config = TrainConfig(
        network=model,
        data=str(data),
        gate=None if gate == "none" else gate,
        group_size=group_size,
        budget=budget,
        accurate_budget=accurate_budget,
        start=None if start is None else str(start),
        distill=distill,
        gate_learning_rate=gate_learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        norm_bias_learning_rate=norm_bias_learning_rate,
        average=average,
        seed=seed,
    )
    run(config, out, resume=resume, force=force)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    out: Annotated[Path, typer.Option(help="File to write: .pt2 or .onnx.")],
    force: Force = False,
) -> None:
    """Export a checkpoint to .pt2 (torch.export) or ONNX."""
    need_torch("export")
    from tvm_dynprune.nn.checkpoint import load_checkpoint
    from tvm_dynprune.nn.export import write_exported
    from tvm_dynprune.nn.networks import network_spec

    model, info = load_checkpoint(checkpoint)
    shape = network_spec(info.network).input_shape
    write_exported(model, shape, out, classes=info.classes, force=force)


def need_torch(command: str) -> None:
    """Raise ToolError if what `command` needs is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "safetensors") if find_spec(name) is None]
    if missing:
        raise ToolError(
            f"{command} needs {' and '.join(missing)}: pip install 'tvm-dynprune[train]'"
        )
