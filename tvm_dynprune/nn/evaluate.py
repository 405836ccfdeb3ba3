# SPDX-License-Identifier: Apache-2.0
"""Accuracy, open fraction and executed MACs of a network over a set of images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tvm_dynprune.nn.batches import ImageSet
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.macs import MacPlan, evaluating, recorded_masks

VARYING = 0.02
"""A group that is open for more than this share of the inputs, and closed for as many, varies."""


@dataclass(frozen=True)
class Evaluation:
    """Figures over a set of images; fractions in [0, 1].

    Attributes
    ----------
    accuracy
        Share of images whose highest logit is their label.
    open_fraction
        Mean of the gates' decisions over inputs and groups of all layers; 1 without gates.
    mac_fraction
        Executed / dense MACs, gates included, mean over the inputs.
    mac_spread
        Standard deviation of that fraction from input to input.
    varying_groups
        Share of the groups whose decision depends on the input (see `VARYING`); 0 without gates.
    """

    accuracy: float
    open_fraction: float
    mac_fraction: float
    mac_spread: float
    varying_groups: float


def evaluate(model: nn.Module, data: ImageSet, plan: MacPlan, batch_size: int) -> Evaluation:
    """Run a network over images in float32 and evaluation mode, with its gates as they are set."""
    correct = 0
    fractions: list[Tensor] = []
    switches: list[Tensor] = []
    sizes = {name: gate.group_size for name, gate in gates_of(model).items()}
    with evaluating(model), torch.no_grad(), recorded_masks(model) as masks:
        for images, labels in data.batches(batch_size):
            correct += int((model(images).argmax(1) == labels).sum())
            open_ = {name: (mask != 0).double() for name, mask in masks.items()}
            macs = [count.expand(len(labels)) for count in plan.executed(open_).values()]
            fractions.append(torch.stack(macs).sum(0) / plan.dense_total)
            groups = [mask[:, :: sizes[name]] for name, mask in open_.items()]
            switches.append(torch.cat(groups, 1) if groups else torch.ones(len(labels), 1))
    share, rates = torch.cat(fractions), torch.cat(switches).mean(0)
    varying = (rates > VARYING) & (rates < 1 - VARYING)
    return Evaluation(
        accuracy=correct / len(data),
        open_fraction=float(rates.mean()),
        mac_fraction=float(share.mean()),
        mac_spread=float(share.std(correction=0)),
        varying_groups=float(varying.float().mean()),
    )
