# SPDX-License-Identifier: Apache-2.0
"""What a network does on images it has not learned from: accuracy, cost, open fractions."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tvm_dynprune.data import LabelledImages
from tvm_dynprune.nn.batches import as_float
from tvm_dynprune.nn.distributed import rank, shared_sum, world_size
from tvm_dynprune.nn.gates import gates_of, set_gates
from tvm_dynprune.nn.latency import LatencyTable
from tvm_dynprune.nn.loss import expected_mac_fraction
from tvm_dynprune.nn.macs import MacPlan
from tvm_dynprune.nn.recording import recorded_masks

_BATCH = 500


@dataclass(frozen=True)
class Evaluation:
    """Means over images, with hard gates.

    Attributes
    ----------
    mac_cut
        1 - executed / dense; None without gates.
    gates
        Open fraction by gate.
    varying
        Share of all groups that are open for some images and closed for others, at least 1 % each:
        with 0 the network is pruned, but not dynamically. None without gates.
    latency_fraction
        Expected share of the dense latency; None without a table.
    """

    accuracy: float
    mac_cut: float | None
    gates: dict[str, float]
    varying: float | None = None
    latency_fraction: float | None = None

    def record(self, prefix: str) -> dict[str, float]:
        """Return the numbers that are there, rounded, with prefixed names."""
        values = {"accuracy": round(self.accuracy, 5)}
        if self.mac_cut is not None:
            values["mac_cut"] = round(self.mac_cut, 4)
            values["open_fraction"] = round(sum(self.gates.values()) / len(self.gates), 4)
        if self.varying is not None:
            values["varying"] = round(self.varying, 4)
        if self.latency_fraction is not None:
            values["latency_fraction"] = round(self.latency_fraction, 4)
        return {f"{prefix}{name}": value for name, value in values.items()}


def evaluate(
    model: nn.Module, data: LabelledImages, plan: MacPlan, latency: LatencyTable | None = None
) -> Evaluation:
    """Measure a network with hard gates, on its own device; it is left in evaluation mode.

    Several processes measure a share of the images each, and all get the whole result.
    """
    model.eval()
    set_gates(model, "hard")
    device = next(model.parameters()).device
    gates = gates_of(model)
    groups = [gate.groups for gate in gates.values()]
    sums = torch.zeros(3 + sum(groups), dtype=torch.float64, device=device)
    for start in range(_BATCH * rank(), len(data), _BATCH * world_size()):
        images = as_float(torch.from_numpy(data.images[start : start + _BATCH]).to(device))
        labels = torch.from_numpy(data.labels[start : start + _BATCH]).to(device)
        with torch.no_grad(), recorded_masks(model) as masks:
            correct = (model(images).argmax(1) == labels).sum()
        decisions = {name: (mask != 0).double() for name, mask in masks.items()}
        executed, expected = _costs(decisions, images, plan, latency)
        opened = [decisions[n][:, :: gate.group_size].sum(0) for n, gate in gates.items()]
        sums += torch.cat([torch.stack([correct.double(), executed, expected]), *opened])
    means = (shared_sum(sums) / len(data)).cpu()
    by_gate = means[3:].split(groups)
    return Evaluation(
        accuracy=float(means[0]),
        mac_cut=1 - float(means[1]) / plan.dense_total if gates else None,
        gates={name: float(open_.mean()) for name, open_ in zip(gates, by_gate, strict=True)},
        varying=float(((means[3:] - 0.5).abs() < 0.49).double().mean()) if gates else None,
        latency_fraction=None if latency is None else float(means[2]),
    )


def _costs(
    decisions: Mapping[str, Tensor], images: Tensor, plan: MacPlan, latency: LatencyTable | None
) -> tuple[Tensor, Tensor]:
    """MACs, and shares of the dense latency, each the sum over the images of a batch."""
    count = len(images)
    macs = [each.double().expand(count).sum() for each in plan.executed(decisions).values()]
    executed = torch.stack(macs).sum().to(images.device)  # without gates the plan knows no device
    if latency is None:
        return executed, torch.zeros_like(executed)
    return executed, count * latency.fraction(plan.opened(decisions)).double()


def training_state(model: nn.Module, plan: MacPlan) -> tuple[float, float]:
    """Return the mean open fraction and the share of the dense MACs in the last training batch."""
    with torch.no_grad():
        opened = [g.switches.mean() for g in gates_of(model).values() if g.switches is not None]
        return float(torch.stack(opened).mean()), float(expected_mac_fraction(model, plan))
