# SPDX-License-Identifier: Apache-2.0
"""What is added to the task loss so that gates close."""

import torch
from torch import Tensor, nn

from tvm_dynprune.nn.gates import Gate, gates_of
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
    masks = {
        name: switches.repeat_interleave(gate.group_size, 1)
        for name, (gate, switches) in _switches(model).items()
    }
    executed = plan.executed(masks)
    return torch.stack([macs.mean().float() for macs in executed.values()]).sum() / plan.dense_total


def budget_loss(model: nn.Module, plan: MacPlan, budget: float) -> Tensor:
    """Return (expected MAC fraction - budget) squared, a differentiable scalar.

    `budget` is the wanted share of the dense MACs, in (0, 1]. The mean over the batch is what
    meets it, so that one input may cost more than another. See `expected_mac_fraction`.
    """
    return (expected_mac_fraction(model, plan) - budget).square()


def floor_loss(model: nn.Module, floor: float) -> Tensor:
    """Sum over gates of (floor - mean open fraction) squared, where that is positive."""
    means = [switches.mean() for _, switches in _switches(model).values()]
    return (floor - torch.stack(means)).clamp(min=0).square().sum()


def _switches(model: nn.Module) -> dict[str, tuple[Gate, Tensor]]:
    found = {
        name: (gate, gate.switches)
        for name, gate in gates_of(model).items()
        if gate.switches is not None
    }
    if not found:
        raise RuntimeError("no gate decisions: run the model with gates in training mode first")
    return found
