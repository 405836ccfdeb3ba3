# SPDX-License-Identifier: Apache-2.0
"""``train`` and ``export``: the stages that need torch."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from tvm_dynprune.cli_options import Force
from tvm_dynprune.errors import ToolError, UserError

if TYPE_CHECKING:
    from tvm_dynprune.nn.latency import LatencyTable

BUDGET = 0.35


def train(
    data: Annotated[Path, typer.Option(help="Folder with Fashion-MNIST, CIFAR-10 or classes.")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    model: Annotated[str, typer.Option(help="One of the project's networks.")] = "fashion_cnn",
    gate: Annotated[
        str, typer.Option(help="lkam, lkam_relu, squeeze, gumbel; none for the dense network.")
    ] = "lkam",
    group_size: Annotated[int, typer.Option(min=1)] = 8,
    budget: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Wanted share of the dense MACs.", show_default=str(BUDGET)),
    ] = None,
    latency_budget: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Instead: wanted share of the dense latency on --soc."),
    ] = None,
    soc: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Whose latency: a profile's name, or host."),
    ] = None,
    gain: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Instead: weight of the penalty on open groups."),
    ] = None,
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
    warm_up: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the training with open gates.")
    ] = 0.1,
    anneal: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share in which the gates then close.")
    ] = 0.25,
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
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:N, or auto: a GPU if there is one.")
    ] = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write OUT/tensorboard too.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    force: Force = False,
) -> None:
    """Train a network with gates, or without; writes a checkpoint after every epoch."""
    need_torch("train")
    from tvm_dynprune.nn.distributed import launched
    from tvm_dynprune.nn.train import TrainConfig, train as run

    logging.getLogger("tvm_dynprune.nn.train").setLevel(logging.INFO)
    _check_target(gate, budget, latency_budget, gain, accurate_budget)
    if (soc is None) != (latency_budget is None):
        raise UserError("--latency-budget and --soc need each other: the latency is that of a SoC")
    if distill and start is None:
        raise UserError("--distill needs --start: the network whose predictions to learn from")
    config = TrainConfig(
        network=model,
        data=str(data),
        gate=None if gate == "none" else gate,
        group_size=group_size,
        budget=next(share for share in (budget, latency_budget, BUDGET) if share is not None),
        accurate_budget=accurate_budget,
        soc=soc,
        latency=None if soc is None else _price(data, model, gate, group_size, soc),
        gain=gain,
        start=None if start is None else str(start),
        distill=distill,
        gate_learning_rate=gate_learning_rate,
        warm_up=warm_up,
        anneal=anneal,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        norm_bias_learning_rate=norm_bias_learning_rate,
        average=average,
        seed=seed,
    )
    try:
        run(config, out, device=device, tensorboard=tensorboard, resume=resume, force=force)
    except UserError:
        if launched()[0] > 0:  # the first process says it
            raise typer.Exit(2) from None
        raise


def _check_target(
    gate: str,
    budget: float | None,
    latency_budget: float | None,
    gain: float | None,
    accurate_budget: float | None,
) -> None:
    """Raise UserError for what cannot be minimised, or not together."""
    shares = {
        "--budget": budget,
        "--latency-budget": latency_budget,
        "--accurate-budget": accurate_budget,
    }
    for name, share in shares.items():
        if share is not None and not 0 < share <= 1:
            raise UserError(f"{name} {share}: a share of the dense network, above 0 and at most 1")
        if share is not None and gain is not None:
            raise UserError(f"--gain and {name}: give one of them")
    if budget is not None and latency_budget is not None:
        raise UserError("--budget and --latency-budget: give one of them")
    if gain is not None and gain <= 0:
        raise UserError(f"--gain {gain}: it must be above 0")
    if gate == "none" and (latency_budget is not None or gain is not None):
        raise UserError("--gate none: without gates there is nothing to close for a target")
    kind, lower = "--latency-budget", latency_budget
    if lower is None:
        kind, lower = "--budget", BUDGET if budget is None else budget
    if accurate_budget is not None and accurate_budget <= lower:
        raise UserError(f"--accurate-budget {accurate_budget}: it must be above {kind} {lower}")


def _price(data: Path, network: str, gate: str, group_size: int, soc: str) -> "LatencyTable":
    """What the network's layers cost on a SoC, for as many classes as the data has."""
    from tvm_dynprune.data import load_images
    from tvm_dynprune.latency import latency_table
    from tvm_dynprune.nn.insert import insert_gates
    from tvm_dynprune.nn.networks import build_network
    from tvm_dynprune.soc import load_soc

    profile = load_soc(soc)
    images = load_images(data, "train")
    _, *shape = images.images.shape
    model = insert_gates(build_network(network, classes=len(images.classes)), gate, group_size)
    return latency_table(model, (shape[0], shape[1], shape[2]), profile)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    out: Annotated[Path, typer.Option(help="File to write: .pt2 or .onnx.")],
    force: Force = False,
) -> None:
    """Export a checkpoint to .pt2 (torch.export) or ONNX."""
    need_torch("export")
    from tvm_dynprune.nn.checkpoint import load_checkpoint
    from tvm_dynprune.nn.export import write_exported

    model, info = load_checkpoint(checkpoint)
    write_exported(model, info.shape, out, classes=info.classes, force=force)


def need_torch(command: str) -> None:
    """Raise ToolError if what `command` needs is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "safetensors") if find_spec(name) is None]
    if missing:
        raise ToolError(
            f"{command} needs {' and '.join(missing)}: pip install 'tvm-dynprune[train]'"
        )
