# SPDX-License-Identifier: Apache-2.0
"""What is added to the task loss so that gates close.

With several processes losses belong to the whole batch, and gradients are to be averaged.
"""

import torch
from torch import Tensor, nn

from tvm_dynprune.nn.distributed import shared_max, shared_mean
from tvm_dynprune.nn.gates import Gate, gates_of
from tvm_dynprune.nn.latency import LatencyTable
from tvm_dynprune.nn.macs import MacPlan


def compute_penalty(model: nn.Module) -> Tensor:
    """Penalise open switches: sum over layers l of gain_l / (2 m_l) * sum over i of sw_i.

    The formula of US 11321613, claim 3, as far as it can be read: m_l is the number of switches of
    layer l and sw_i in [0, 1] one switch; here the mean over the batch. With every switch open it
    is the sum of gain_l / 2.

    Parameters
    ----------
    model
        A model with gates, after a forward pass in training mode. ``gain`` of each gate weighs it.

    Returns
    -------
    torch.Tensor
        Scalar, differentiable with respect to the gates.

    Raises
    ------
    RuntimeError
        The model has no gates, or none has run in training mode.
    """
    terms = [gate.gain / 2 * switches.mean() for gate, switches in _switches(model).values()]
    return torch.stack(terms).sum()


def expected_mac_fraction(model: nn.Module, plan: MacPlan) -> Tensor:
    """Return the executed share of the dense MACs, mean over the last training batch.

    Parameters
    ----------
    model
        A model with gates, after a forward pass in training mode.
    plan
        Of the same model, from `plan_macs`.

    Returns
    -------
    torch.Tensor
        Scalar, 1 with all gates open (plus what the gates cost), differentiable. A convolution's
        share is open_in times open_out, so closing a channel also pays in the layer after it.

    Raises
    ------
    RuntimeError
        The model has no gates, or none has run in training mode.
    """
    executed = plan.executed(_masks(model))
    return torch.stack([macs.mean().float() for macs in executed.values()]).sum() / plan.dense_total


def expected_latency_fraction(model: nn.Module, plan: MacPlan, latency: LatencyTable) -> Tensor:
    """Return the expected share of the dense latency over the last training batch.

    A differentiable scalar as `expected_mac_fraction` is, of costs in place of MACs.
    """
    return latency.fraction(plan.opened(_masks(model)), shared_mean)


def budget_loss(
    model: nn.Module, plan: MacPlan, budget: float, latency: LatencyTable | None = None
) -> Tensor:
    """Return (expected fraction - budget) squared, a differentiable scalar.

    `budget` is the wanted share of the dense MACs, or with a table of the dense latency, in (0, 1].
    The mean over the batch is what meets it, so that one input may cost more than another. See
    `expected_mac_fraction` and `expected_latency_fraction`.
    """
    if latency is None:
        return (shared_mean(expected_mac_fraction(model, plan)) - budget).square()
    return (expected_latency_fraction(model, plan, latency) - budget).square()


def floor_loss(model: nn.Module, floor: float) -> Tensor:
    """Sum over gates of (floor - mean open fraction) squared, where that is positive."""
    means = [switches.mean() for _, switches in _switches(model).values()]
    return (floor - shared_mean(torch.stack(means))).clamp(min=0).square().sum()


def stuck_loss(model: nn.Module, bound: float) -> Tensor:
    """Sum over gates of how far their decision nearest to the threshold lies beyond `bound`.

    A gate all of whose decisions in a batch are on one side, and beyond the bound, has no gradient:
    at a margin of 4 the sigmoid has 7 % of it, at 8 0.1 %. This loss goes by the margins, brings
    the nearest group back, and leaves it to the others whether it then changes sides.

    Parameters
    ----------
    model
        A model with gates, after a forward pass in training mode.
    bound
        In units of ``slope * (logits - threshold)``, above 0.

    Returns
    -------
    torch.Tensor
        Scalar, 0 with gradient 0 if no gate is stuck.
    """
    margins = [gate.margins for gate, _ in _switches(model).values() if gate.margins is not None]
    lowest = -shared_max(torch.stack([-m.min() for m in margins]))
    highest = shared_max(torch.stack([m.max() for m in margins]))
    nearest = torch.maximum(lowest, -highest)
    return (nearest - bound).clamp(min=0).sum()


def _masks(model: nn.Module) -> dict[str, Tensor]:
    """Masks (N, C_out) of the last training batch, by gate name."""
    return {
        name: switches.repeat_interleave(gate.group_size, 1)
        for name, (gate, switches) in _switches(model).items()
    }


def _switches(model: nn.Module) -> dict[str, tuple[Gate, Tensor]]:
    found = {
        name: (gate, gate.switches)
        for name, gate in gates_of(model).items()
        if gate.switches is not None
    }
    if not found:
        raise RuntimeError("no gate decisions: run the model with gates in training mode first")
    return found
