# SPDX-License-Identifier: Apache-2.0
"""Networks with random weights whose gates are set to a wanted open fraction, for benchmarks."""

from functools import partial

import torch
from torch import Tensor, nn

from tvm_dynprune.nn.gates import LKAMGate, gates_of
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.macs import count_macs
from tvm_dynprune.nn.networks import build_network, network_spec


def forced_network(name: str, *, group_size: int, open_fraction: float, seed: int = 0) -> nn.Module:
    """Return a gated network with random weights and about `open_fraction` of its groups open.

    Every gate gets random weights and then, layer by layer, the threshold that leaves that fraction
    of its logits open on one random image. What is open says nothing about accuracy: the network
    serves for timing only.
    """
    torch.manual_seed(seed)
    model = insert_gates(build_network(name), group_size=group_size).eval()
    gates = gates_of(model).values()
    for gate in gates:
        nn.init.normal_(gate.conv.weight)
    handles = [gate.register_forward_pre_hook(partial(_set, open_fraction)) for gate in gates]
    with torch.no_grad():
        model(torch.rand(1, *network_spec(name).input_shape))
    for handle in handles:
        handle.remove()
    return model


def network_with_mac_cut(
    name: str, *, group_size: int, mac_cut: float, seed: int = 0
) -> tuple[nn.Module, float]:
    """Return `forced_network` at the open fraction that gives about `mac_cut`, and the fraction."""
    low, high = 0.0, 1.0
    images = torch.rand(1, *network_spec(name).input_shape)
    for _ in range(7):
        middle = (low + high) / 2
        model = forced_network(name, group_size=group_size, open_fraction=middle, seed=seed)
        if count_macs(model, images).mac_cut > mac_cut:
            low = middle
        else:
            high = middle
    return forced_network(name, group_size=group_size, open_fraction=high, seed=seed), high


def _set(open_fraction: float, gate: nn.Module, inputs: tuple[Tensor]) -> None:
    assert isinstance(gate, LKAMGate)
    logits = gate.logits(inputs[0]).flatten().sort().values
    closed = round(len(logits) * (1 - open_fraction))
    edges = torch.cat([logits[:1] - 1, (logits[1:] + logits[:-1]) / 2, logits[-1:] + 1])
    gate.threshold.fill_(float(edges[closed]))
