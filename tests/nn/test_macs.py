# SPDX-License-Identifier: Apache-2.0
"""Counted MACs, against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from tests.nn.small_networks import Chain, Fire, Inverted, Residual, decide, executed
from tvm_dynprune.bench.inputs import random_images
from tvm_dynprune.nn.forced import forced_network, network_with_mac_cut
from tvm_dynprune.nn.gates import gates_of, set_gates
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.macs import count_macs, plan_macs
from tvm_dynprune.nn.networks import build_network
from tvm_dynprune.nn.recording import recorded_masks


def test_dense_network() -> None:
    count = count_macs(Chain(), torch.rand(2, 3, 6, 6))
    wanted = {
        "conv1": 3 * 4 * 9 * 36,
        "conv2": 4 * 6 * 9 * 36,
        "conv3": 6 * 8 * 9 * 9,
        "fc": 8 * 5,
    }
    assert count.dense == wanted
    assert {name: macs.tolist() for name, macs in count.executed.items()} == {
        name: [macs, macs] for name, macs in wanted.items()
    }
    assert count.mac_cut == 0


def test_chain() -> None:
    model = insert_gates(Chain(), group_size=2).eval()
    decide(model, {"conv2": [1, 0, 0], "conv3": [0, 1, 1, 0]})
    assert executed(model) == {
        "conv1": 3 * 4 * 9 * 36,
        "gates.conv2": 4 * 3,
        "conv2": 4 * 2 * 9 * 36,
        "gates.conv3": 2 * 4,  # reads the two channels that are left
        "conv3": 2 * 4 * 9 * 9,
        "fc": 4 * 5,
    }


def test_everything_closed_costs_the_first_layer_and_the_first_gate() -> None:
    model = insert_gates(Chain(), group_size=2).eval()
    decide(model, {"conv2": [0, 0, 0], "conv3": [0, 0, 0, 0]})
    assert executed(model) == {
        "conv1": 3 * 4 * 9 * 36,
        "gates.conv2": 4 * 3,
        "conv2": 0,
        "gates.conv3": 0,
        "conv3": 0,
        "fc": 0,
    }


def test_each_input_counts_for_itself() -> None:
    model = insert_gates(Chain(), group_size=2, include=["conv2"]).eval()
    gate = gates_of(model)["gates.conv2"]
    # Open where the first channel is positive somewhere: in one of the two images only.
    nn.init.zeros_(gate.conv.weight)
    nn.init.ones_(gate.conv.weight[:, :1])
    nn.init.constant_(gate.conv.bias, -1e-3)
    with torch.no_grad():
        model.conv1.weight.zero_()
        model.conv1.weight[0] = 1.0
        model.conv1.bias.zero_()
    images = torch.stack([torch.ones(3, 6, 6), torch.zeros(3, 6, 6)])
    count = count_macs(model, images)
    assert count.executed["conv2"].tolist() == [4 * 6 * 9 * 36, 0]
    assert count.executed["conv3"].tolist() == [6 * 8 * 9 * 9, 0]
    total = count.executed_total
    assert count.mac_cut == pytest.approx(1 - float(total.double().mean()) / count.dense_total)


def test_a_residual_addition_opens_what_either_side_opens() -> None:
    model = insert_gates(Residual(), group_size=1, first=True, exclude=["conv3"]).eval()
    decide(model, {"stem": [1, 1, 0, 0], "conv1": [1, 1, 1, 0], "conv2": [0, 1, 1, 0]})
    assert executed(model) == {
        "gates.stem": 3 * 4,
        "stem": 3 * 2 * 9 * 36,
        "gates.conv1": 2 * 4,
        "conv1": 2 * 3 * 9 * 36,
        "gates.conv2": 3 * 4,
        "conv2": 3 * 2 * 9 * 36,
        "conv3": 3 * 8 * 36,  # channels 0, 1 from the shortcut, 1, 2 from the branch
        "fc": 8 * 5,
    }


def test_an_open_shortcut_leaves_everything_open() -> None:
    model = insert_gates(Residual(), group_size=4).eval()
    decide(model, {"conv1": [0], "conv2": [0], "conv3": [1, 1]})
    counts = executed(model)
    assert (counts["conv1"], counts["conv2"]) == (0, 0)
    assert (counts["gates.conv3"], counts["conv3"]) == (4 * 2, 4 * 8 * 36)


def test_concatenation() -> None:
    model = insert_gates(Fire(), group_size=2, exclude=["right"]).eval()
    decide(model, {"squeeze": [1, 0], "left": [0, 1]})
    assert executed(model) == {
        "stem": 3 * 4 * 36,
        "gates.squeeze": 4 * 2,
        "squeeze": 4 * 2 * 36,
        "gates.left": 2 * 2,
        "left": 2 * 2 * 36,
        "right": 2 * 4 * 9 * 36,
        "last": (2 + 4) * 2 * 36,
    }


def test_one_gate_closes_expansion_depthwise_and_projection_input() -> None:
    model = insert_gates(Inverted(), group_size=2).eval()
    assert model.report.gated == ("depthwise.0",)
    decide(model, {"depthwise_0": [1, 0, 0, 1]})
    assert executed(model) == {
        "stem": 3 * 4 * 9 * 36,
        "gates.depthwise_0": 4 * 4,
        "expand.0": 4 * 4 * 36,
        "depthwise.0": 4 * 9 * 9,
        "project.0": 4 * 4 * 9,
        "head": 4 * 2 * 9 * 9,
    }


def test_a_mask_before_the_depthwise_convolution_does_not_close_it() -> None:
    """Its batch norm makes a constant of a zero channel."""
    model = insert_gates(Inverted(), group_size=2, exclude=["depthwise.0"]).eval()
    decide(model, {"expand_0": [1, 0, 0, 1]})
    counts = executed(model)
    assert counts["expand.0"] == 4 * 4 * 36
    assert counts["project.0"] == 8 * 4 * 9


class Flattened(nn.Module):
    """A linear layer over 4 channels of 3x3 pixels each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.conv(self.stem(x).relu()).relu(), 2)
        return self.fc(torch.flatten(x, 1))


def test_a_flatten_repeats_each_channel_over_its_pixels() -> None:
    model = insert_gates(Flattened(), group_size=1).eval()
    decide(model, {"conv": [1, 0, 1, 0]})
    assert executed(model)["fc"] == 2 * 9 * 5


def test_open_gates_cost_nothing_but_themselves() -> None:
    model = insert_gates(Chain(), group_size=2).eval()
    gates = 4 * 3 + 6 * 4
    set_gates(model, "open")
    count = count_macs(model, torch.rand(1, 3, 6, 6))
    assert count.executed_total.tolist() == [count.dense_total + gates]


def test_known_totals() -> None:
    """Published MACs of the networks for 224x224 images, one linear layer or 1x1 included."""
    assert plan_macs(build_network("resnet18"), (3, 224, 224)).dense_total == 1_814_073_344
    assert plan_macs(build_network("mobilenet_v1"), (3, 224, 224)).dense_total == 568_740_352
    assert plan_macs(build_network("mobilenet_v2"), (3, 224, 224)).dense_total == 300_774_272
    assert plan_macs(build_network("vgg16_bn"), (3, 32, 32)).dense_total == 313_201_664


def test_forced_network_has_the_wanted_cut() -> None:
    images = torch.from_numpy(random_images(8, (1, 28, 28), seed=0))
    model, fraction = network_with_mac_cut("fashion_cnn", images, group_size=8, mac_cut=0.7)
    assert 0 < fraction < 1
    macs = count_macs(model, images)
    assert macs.mac_cut == pytest.approx(0.7, abs=0.02)
    assert len(set(macs.executed_total.tolist())) > 1, "other groups for every image"


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_no_forced_gate_decides_by_rounding(count: int) -> None:
    images = torch.from_numpy(random_images(count, (1, 28, 28), seed=0))
    model = forced_network("fashion_cnn", images, group_size=8, open_fraction=0.5)
    margins = []
    for gate in gates_of(model).values():
        gate.register_forward_pre_hook(
            lambda gate, x: margins.append((gate.logits(x[0]).flatten() - gate.threshold).abs())
        )
    with torch.no_grad():
        model(images)
    assert len(margins) == len(gates_of(model))
    assert all(margin.min() > 1e-4 for margin in margins)


def test_forced_network_without_a_cut_is_open() -> None:
    images = torch.from_numpy(random_images(2, (1, 28, 28), seed=0))
    model, fraction = network_with_mac_cut("fashion_cnn", images, group_size=8, mac_cut=0.0)
    assert fraction == 1.0
    with torch.no_grad(), recorded_masks(model) as masks:
        model(images)
    assert all(bool((mask == 1).all()) for mask in masks.values())
