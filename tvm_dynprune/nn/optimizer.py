# SPDX-License-Identifier: Apache-2.0
"""The optimiser: groups of parameters, the learning rate over a training, saved momentum."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tvm_dynprune.nn.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay for the weights of the network only."""
    norm_biases = {
        f"{name}.bias" for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)
    }
    kinds: dict[str, list[Tensor]] = {"weights": [], "norm_biases": [], "others": [], "gates": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("gates."):
            kinds["gates"].append(parameter)
        elif name in norm_biases:
            kinds["norm_biases"].append(parameter)
        else:
            kinds["weights" if parameter.ndim > 1 else "others"].append(parameter)
    factors = {
        "norm_biases": config.norm_bias_learning_rate,
        "gates": config.gate_learning_rate,
    }
    groups = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if kind == "weights" else 0.0,
            "factor": factors.get(kind, 1.0),
        }
        for kind, parameters in kinds.items()
        if parameters
    ]
    rate = config.learning_rate
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, done: float) -> None:
    """Set each group's rate after the share `done` of the training: see `learning_rate_factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * peak * learning_rate_factor(done)


def learning_rate_factor(done: float) -> float:
    """One cycle: up linearly over the first fifth, down to 0 by a cosine; `done` in [0, 1]."""
    if done < 0.2:
        return 0.1 + 0.9 * done / 0.2
    return 0.5 * (1 + math.cos(math.pi * (done - 0.2) / 0.8))


def read_momentum(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the momentum of each parameter that has one, by name."""
    return {
        name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
        if optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
    }


def restore_momentum(
    model: nn.Module, optimizer: torch.optim.Optimizer, momentum: Mapping[str, Tensor]
) -> None:
    """Give parameters their saved momentum, in the parameter's memory format."""
    for name, parameter in model.named_parameters():
        if name in momentum:
            buffer = torch.empty_like(parameter).copy_(momentum[name])
            optimizer.state[parameter]["momentum_buffer"] = buffer
