# SPDX-License-Identifier: Apache-2.0
"""Networks with random weights whose gates are set to a wanted open fraction, for benchmarks."""

from functools import partial

import torch
from torch import Tensor, nn

from tvm_dynprune.nn.gate_kinds import LKAMGate
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.macs import count_macs
from tvm_dynprune.nn.networks import build_network

_STEPS = 8  # of the bisection
_ALWAYS = 1e3  # bias, in standard deviations
_APART = 0.3  # likewise


def forced_network(
    name: str, images: Tensor, *, group_size: int, open_fraction: float, seed: int = 0
) -> nn.Module:
    """Return a gated network with random weights and about `open_fraction` of its groups open.

    Every gate gets random weights, scaled and shifted layer by layer so that each group's logit has
    mean 0 and deviation 1 over `images` (N, C, H, W), and the threshold that leaves the wanted
    share of them open: other groups for every image. One group per layer, drawn at random, is
    always open, or nothing would reach the layers behind. What is open says nothing about accuracy:
    the network serves for timing only.
    """
    torch.manual_seed(seed)
    model = insert_gates(build_network(name), group_size=group_size).eval()
    gates = [gate for gate in gates_of(model).values() if isinstance(gate, LKAMGate)]
    for gate in gates:
        nn.init.normal_(gate.conv.weight)
    hooks = [gate.register_forward_pre_hook(partial(_force, open_fraction)) for gate in gates]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return model


def network_with_mac_cut(
    name: str, images: Tensor, *, group_size: int, mac_cut: float, seed: int = 0
) -> tuple[nn.Module, float]:
    """Return `forced_network` at the open fraction that gives `mac_cut` on `images`, and it.

    Small cuts may not be reached exactly, and the largest not at all, as one group stays open.
    """
    low, high = 0.0, 1.0
    for _ in range(_STEPS if mac_cut > 0 else 0):
        middle = (low + high) / 2
        model = forced_network(name, images, group_size=group_size, open_fraction=middle, seed=seed)
        if count_macs(model, images).mac_cut > mac_cut:
            low = middle
        else:
            high = middle
    model = forced_network(name, images, group_size=group_size, open_fraction=high, seed=seed)
    return model, high


def _force(open_fraction: float, gate: nn.Module, inputs: tuple[Tensor]) -> None:
    assert isinstance(gate, LKAMGate)
    assert gate.conv.bias is not None
    gate.conv.weight -= gate.conv.weight.mean(0)  # not all groups up or down with the brightness
    logits = gate.logits(inputs[0])[:, :, 0, 0]
    if len(logits) > 1:
        deviation, mean = torch.std_mean(logits, dim=0)
        deviation.clamp_(min=1e-3)
        gate.conv.weight /= deviation[:, None, None, None]
        gate.conv.bias.copy_((gate.conv.bias - mean) / deviation)
    if len(logits) == 2:  # now the same two numbers in every group, with no room for a threshold
        gate.conv.bias += _APART * torch.randn(gate.groups)
    always = int(torch.randint(gate.groups, ()))
    gate.conv.bias[always] += _ALWAYS
    logits = gate.logits(inputs[0])[:, :, 0, 0]
    others = torch.cat([logits[:, :always], logits[:, always + 1 :]], dim=1).flatten()
    wanted = len(logits) * (open_fraction * gate.groups - 1)
    gate.threshold.fill_(_threshold(others.sort().values, wanted))


def _threshold(logits: Tensor, wanted: float) -> float:
    """The threshold above which about `wanted` of the ascending logits are, in the widest gap."""
    if len(logits) == 0:
        return 0.0
    closed = len(logits) - min(max(round(wanted), 0), len(logits))
    slack = len(logits) // 50 if 0 < closed < len(logits) else 0
    edges = torch.cat([logits[:1] - 1, logits, logits[-1:] + 1])
    gaps = edges.diff()[closed - slack : closed + slack + 1]
    widest = closed - slack + int(gaps.argmax())
    return float(edges[widest : widest + 2].mean())
