# SPDX-License-Identifier: Apache-2.0
"""Counted MACs: by hand on small networks, and against what the compiler says it executes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from tvm_dynprune.compiler import Model, compile
from tvm_dynprune.frontend import from_exported
from tvm_dynprune.nn.export import export
from tvm_dynprune.nn.forced import forced_network, network_with_mac_cut
from tvm_dynprune.nn.gates import gates_of, set_gates
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.macs import count_macs, plan_macs, recorded_masks
from tvm_dynprune.nn.networks import build_network, network_spec
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.expose_gates import gate_infos
from tvm_dynprune.passes.layer_macs import layer_macs
from tvm_dynprune.runtime.macs import executed_macs
from tvm_dynprune.runtime.session import Session
from tvm_dynprune.soc import load_soc


def decide(model: nn.Module, decisions: dict[str, Sequence[int]]) -> None:
    """Let gates decide one thing whatever the input: 1 open, 0 closed, by group."""
    for name, groups in decisions.items():
        gate = gates_of(model)[f"gates.{name}"]
        assert gate.conv.bias is not None
        nn.init.zeros_(gate.conv.weight)
        gate.conv.bias.data = torch.tensor([1.0 if is_open else -1.0 for is_open in groups])


def executed(model: nn.Module, shape: tuple[int, int, int] = (3, 6, 6)) -> dict[str, int]:
    """MACs by layer of one input."""
    count = count_macs(model, torch.rand(1, *shape))
    return {name: int(macs) for name, macs in count.executed.items()}


class Chain(nn.Module):
    """6x6 pixels, 3x3 convolutions of 3, 4, 6 and 8 channels, the last with stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.fc(self.conv3(x).relu().mean((2, 3)))


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


class Residual(nn.Module):
    """Two blocks of the same width at 6x6 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        y = self.bn2(self.conv2(self.conv1(x).relu()))
        return self.fc(self.conv3((x + y).relu()).relu().mean((2, 3)))


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


class Fire(nn.Module):
    """A squeeze of 4, two expansions of 4 side by side, and a 1x1 convolution over both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.squeeze = nn.Conv2d(4, 4, 1)
        self.left = nn.Conv2d(4, 4, 1)
        self.right = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(self.stem(x).relu()).relu()
        both = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        return self.last(both).mean((2, 3))


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


class Inverted(nn.Module):
    """Expansion, depthwise, projection; with batch norm a closed channel is not 0 by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.expand = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(8), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.project(self.depthwise(self.expand(self.stem(x).relu())))
        return self.fc(x.mean((2, 3)))


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
        "fc": 4 * 2,
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
    assert plan_macs(build_network("mobilenet_v2"), (3, 224, 224)).dense_total == 300_774_272
    assert plan_macs(build_network("vgg16_bn"), (3, 32, 32)).dense_total == 313_201_664


def test_forced_network_has_the_wanted_cut() -> None:
    model, fraction = network_with_mac_cut("fashion_cnn", group_size=8, mac_cut=0.7)
    assert 0 < fraction < 1
    torch.manual_seed(0)
    assert count_macs(model, torch.rand(1, 1, 28, 28)).mac_cut == pytest.approx(0.7, abs=0.1)


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).random((count, *shape), dtype="float32")


def program_of(model: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    return export(model, torch.rand(2, *shape))


def test_session_counts_as_we_do(tmp_path: Path) -> None:
    model = forced_network("fashion_cnn", group_size=8, open_fraction=0.5)
    program = program_of(model, (1, 28, 28))

    def reference(x: np.ndarray) -> list[np.ndarray]:
        return [program.module()(torch.from_numpy(x)).detach().numpy()]

    imported = Model("fashion_cnn", from_exported(program), reference)
    session = Session(compile(imported, load_soc("host"), tmp_path / "a", lowering="indexed"))
    x = pixels(6, 1, 28, 28)
    session.run(x)
    wanted = count_macs(model, torch.from_numpy(x)).executed_total
    assert session.macs.tolist() == wanted.tolist()
    assert len(set(wanted.tolist())) > 1, "the images should differ in cost"


def compiled_macs(model: nn.Module, x: np.ndarray) -> np.ndarray:
    """MACs as the compiler's analysis of the imported network counts them, without building it."""
    mod = from_exported(program_of(model, x.shape[1:]))
    mod = tvm.transform.Sequential(pipeline.simplify_passes())(mod)
    annotated = pipeline.annotate(mod)
    main = annotated["main"]
    layers = layer_macs(main, dict(annotated.functions_items()))
    with torch.no_grad(), recorded_masks(model) as masks:
        model(torch.from_numpy(x))
    decided = [masks[f"gates.{info.layer}"].numpy() != 0 for info in gate_infos(main)]
    return executed_macs(layers, decided)


def half_open(model: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Gates that decide at random, whatever the input."""
    torch.manual_seed(seed)
    gated = insert_gates(model(), group_size=2, first=True).eval()
    for name, gate in gates_of(gated).items():
        groups = torch.randint(0, 2, (gate.groups,)).tolist()
        decide(gated, {name.removeprefix("gates."): groups})
    return gated


@pytest.mark.parametrize("model", [Chain, Residual, Fire, Inverted])
def test_compiler_counts_small_networks_as_we_do(model: Callable[[], nn.Module]) -> None:
    gated = half_open(model, 3)
    x = pixels(1, 3, 6, 6)
    assert compiled_macs(gated, x).tolist() == [sum(executed(gated).values())]


@pytest.mark.parametrize(
    ("name", "group_size"), [("resnet20", 4), ("resnet20", 16), ("squeezenet1_1", 16)]
)
def test_compiler_counts_as_we_do(name: str, group_size: int) -> None:
    model = forced_network(name, group_size=group_size, open_fraction=0.5)
    channels, height, width = network_spec(name).input_shape
    x = pixels(3, channels, min(height, 64), min(width, 64))
    wanted = count_macs(model, torch.from_numpy(x)).executed_total
    assert compiled_macs(model, x).tolist() == wanted.tolist()
    assert wanted.max() < plan_macs(model, x.shape[1:]).dense_total
