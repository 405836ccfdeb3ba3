# SPDX-License-Identifier: Apache-2.0
"""insert_gates: what it gates on every network, and what it leaves as it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.nn.small_networks import Squeezed
from tvm_dynprune.errors import GroupSizeError, ModelError
from tvm_dynprune.nn.gates import gates_of, set_thresholds
from tvm_dynprune.nn.insert import GatedModel, insert_gates
from tvm_dynprune.nn.networks import NETWORKS, build_network, network_spec

# Convolutions, gated ones, and how often each reason for leaving one alone occurs.
EXPECTED: dict[str, tuple[int, int, dict[str, int]]] = {
    "fashion_cnn": (6, 5, {"first convolution": 1}),
    "vgg16_bn": (13, 12, {"first convolution": 1}),
    "resnet20": (21, 20, {"first convolution": 1}),
    "resnet56": (57, 56, {"first convolution": 1}),
    "resnet18": (20, 19, {"first convolution": 1}),
    "compact_vgg": (7, 6, {"first convolution": 1}),
    "squeezenet1_1": (26, 24, {"first convolution": 1, "classifier": 1}),
    "mobilenet_v1": (27, 14, {"first convolution": 1, "expansion": 12}),
    "mobilenet_v1_025": (27, 14, {"first convolution": 1, "expansion": 12}),
    "mobilenet_v2": (52, 18, {"first convolution": 1, "expansion": 16, "linear projection": 17}),
}

# A few entries of torchvision's state dicts.
TORCHVISION = {
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_mean": (64,),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer1.1.bn2.bias": (64,),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_var": (128,),
        "layer4.1.conv2.weight": (512, 512, 3, 3),
        "layer4.1.bn2.num_batches_tracked": (),
        "fc.weight": (1000, 512),
        "fc.bias": (1000,),
    },
    "mobilenet_v2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.0.1.weight": (32,),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.1.conv.2.running_mean": (16,),
        "features.2.conv.0.0.weight": (96, 16, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.2.conv.2.weight": (24, 96, 1, 1),
        "features.2.conv.3.bias": (24,),
        "features.17.conv.1.0.weight": (960, 1, 3, 3),
        "features.18.0.weight": (1280, 320, 1, 1),
        "features.18.1.running_var": (1280,),
        "classifier.1.weight": (1000, 1280),
    },
    "squeezenet1_1": {
        "features.0.weight": (64, 3, 3, 3),
        "features.3.squeeze.weight": (16, 64, 1, 1),
        "features.3.expand1x1.weight": (64, 16, 1, 1),
        "features.3.expand3x3.bias": (64,),
        "features.6.squeeze.weight": (32, 128, 1, 1),
        "features.12.expand3x3.weight": (256, 64, 3, 3),
        "classifier.1.weight": (1000, 512, 1, 1),
        "classifier.1.bias": (1000,),
    },
}
# Entries of torchvision's state dicts, `num_batches_tracked` included.
TORCHVISION_ENTRIES = {"resnet18": 122, "mobilenet_v2": 314, "squeezenet1_1": 52}


def network(name: str) -> nn.Module:
    """A network with statistics in its batch norms as after training."""
    torch.manual_seed(0)
    model = build_network(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def images(name: str, count: int = 2) -> torch.Tensor:
    """Images of the network's shape; 64 pixels do where it would take 224."""
    channels, height, width = network_spec(name).input_shape
    return torch.rand(count, channels, min(height, 64), min(width, 64))


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_start_open_and_names_stay(name: str) -> None:
    model = network(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gated = insert_gates(model, group_size=8)
    x = images(name)
    with torch.no_grad():
        wanted, got = model(x), gated(x)
    assert (got - wanted).abs().max() <= 1e-6 * wanted.abs().max()

    after = gated.state_dict()
    assert {key for key in after if not key.startswith("gates.")} == set(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not gated.training


@pytest.mark.parametrize("name", NETWORKS)
def test_report_says_what_was_gated_and_why_not(name: str) -> None:
    gated = insert_gates(build_network(name), group_size=8)
    layers, with_gate, reasons = EXPECTED[name]
    report = gated.report
    assert len(report.layers) == layers
    assert len(report.gated) == with_gate == len(gates_of(gated))
    assert {f"gates.{layer.replace('.', '_')}" for layer in report.gated} == set(gates_of(gated))
    for reason, count in reasons.items():
        rows = [row for row in report.layers if not row.gated and reason in row.reason]
        assert len(rows) == count, reason
    assert sum(reasons.values()) == layers - with_gate
    assert f"{with_gate} of {layers} convolutions gated" in str(report)
    assert all(row.groups > 0 for row in report.layers if row.gated)


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_are_named_as_in_torchvision(name: str) -> None:
    state = build_network(name).state_dict()
    assert len(state) == TORCHVISION_ENTRIES[name]
    for key, shape in TORCHVISION[name].items():
        assert tuple(state[key].shape) == shape, key


def test_normalisation_is_not_in_the_state_dict() -> None:
    model = build_network("fashion_cnn")
    for version in (model, insert_gates(model)):
        assert not any("normalise" in key for key in version.state_dict())
        assert any("normalise" in name for name, _ in version.named_buffers())


def test_training_mode_is_kept() -> None:
    model = build_network("fashion_cnn").train()
    assert all(gate.training for gate in gates_of(insert_gates(model)).values())


@pytest.mark.parametrize(
    ("include", "exclude", "gated"),
    [
        (["features.1*"], None, ["features.10", "features.14", "features.17"]),
        (None, ["features.1?"], ["features.3", "features.7"]),
        (["features.1*"], ["*.14"], ["features.10", "features.17"]),
        (["nothing"], None, []),
        # By its own name a layer is gated that would be left alone otherwise.
        (["features.0"], None, ["features.0"]),
        # A pattern is no name.
        (["features.[03]"], None, ["features.3"]),
    ],
)
def test_patterns(include: list[str] | None, exclude: list[str] | None, gated: list[str]) -> None:
    model = insert_gates(build_network("fashion_cnn"), include=include, exclude=exclude)
    assert list(model.report.gated) == gated


def test_reasons_of_patterns() -> None:
    model = insert_gates(
        build_network("fashion_cnn"), include=["features.1*"], exclude=["features.17"]
    )
    reasons = {row.layer: row.reason for row in model.report.layers}
    assert reasons["features.3"] == "matches no include pattern"
    assert reasons["features.17"] == "excluded by pattern"


def test_first() -> None:
    assert "features.0" in insert_gates(build_network("fashion_cnn"), first=True).report.gated


def test_group_size_error_names_layer_and_both_numbers() -> None:
    with pytest.raises(GroupSizeError, match=r"^layer1\.0\.conv1: group size 12 .* 16 channels"):
        insert_gates(build_network("resnet20"), group_size=12)


def test_group_size_of_an_excluded_layer_does_not_matter() -> None:
    gated = insert_gates(build_network("resnet20"), group_size=32, exclude=["layer1.*"])
    assert len(gated.report.gated) == 14


@pytest.mark.parametrize("group_size", [0, -4])
def test_group_size_below_one(group_size: int) -> None:
    with pytest.raises(GroupSizeError, match=str(group_size)):
        insert_gates(build_network("resnet20"), group_size=group_size)


def test_unknown_gate_and_gates_twice() -> None:
    model = build_network("fashion_cnn")
    with pytest.raises(ModelError, match=r"'lkan'.*lkam"):
        insert_gates(model, gate="lkan")
    with pytest.raises(ModelError, match="has gates already"):
        insert_gates(insert_gates(model))


class Branching(nn.Module):
    """torch.fx cannot follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else x


def test_untraceable_model() -> None:
    with pytest.raises(ModelError, match="Branching: torch.fx cannot trace"):
        insert_gates(Branching())


class Odd(nn.Module):
    """A convolution called twice, and names that would collide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.a = nn.ModuleDict({"b_c": nn.Conv2d(8, 8, 1)})
        self.a_b = nn.ModuleDict({"c": nn.Conv2d(8, 8, 1)})
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(self.stem(x).relu()).relu())
        return self.last(self.a_b["c"](self.a["b_c"](x)))


def test_layers_that_cannot_be_gated() -> None:
    gated = insert_gates(Odd().eval(), group_size=4)
    reasons = {row.layer: row.reason for row in gated.report.layers}
    assert "called 2 times" in reasons["twice"]
    assert gated.report.gated == ("a.b_c", "a_b.c")
    assert len(gates_of(gated)) == 2


def masks_after(gated: GatedModel, gate: str) -> list[str]:
    """What the masked tensor was made by, for each use of the gate's mask."""
    (node,) = (n for n in gated.graph.nodes if n.target == gate)
    return [str(user.args[0].target) for user in node.users]


def test_inverted_residual_has_one_gate() -> None:
    model = network("mobilenet_v2")
    gated = insert_gates(model, group_size=16)
    rows = {row.layer: row for row in gated.report.layers}
    assert rows["features.3.conv.1.0"].reason == "read from the input of features.3.conv.0.0"
    assert rows["features.3.conv.0.0"].reason.startswith("expansion: the gate of features.3.conv.1")
    gate = gates_of(gated)["gates.features_3_conv_1_0"]
    assert (gate.conv.in_channels, gate.groups * gate.group_size) == (24, 144)
    # The mask stands after the depthwise convolution's activation.
    assert masks_after(gated, "gates.features_3_conv_1_0") == ["features.3.conv.1.2"]
    (node,) = (n for n in gated.graph.nodes if n.target == "gates.features_3_conv_1_0")
    (expansion,) = (n for n in gated.graph.nodes if n.target == "features.3.conv.0.0")
    assert node.args[0] is expansion.args[0]


def test_squeeze_and_excitation_has_no_gates() -> None:
    gated = insert_gates(Squeezed().eval(), group_size=2, first=True)
    reasons = {row.layer: row.reason for row in gated.report.layers}
    assert gated.report.gated == ("stem", "depthwise.0", "last.0")
    assert reasons["squeeze"] == reasons["excite"] == "reads one pixel: nothing to skip"
    assert reasons["project.0"] == "linear projection"


@pytest.mark.parametrize(
    ("pool", "gated"),
    [
        (lambda x: F.adaptive_avg_pool2d(x, (1, 1)), False),
        (lambda x: F.adaptive_max_pool2d(x, 1), False),
        (lambda x: x.mean((-1, -2), keepdim=True), False),
        (lambda x: torch.mean(x, dim=[2, 3], keepdim=True), False),
        (nn.AdaptiveAvgPool2d(1), False),
        (lambda x: F.adaptive_avg_pool2d(x, 2), True),
        (lambda x: x.mean(1, keepdim=True).expand(-1, 8, -1, -1), True),
    ],
)
def test_a_convolution_after_a_global_pooling_has_no_gate(pool, gated: bool) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
            self.last = nn.Conv2d(8, 4, 1)
            self.pool = pool if isinstance(pool, nn.Module) else None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = (self.pool or pool)(self.stem(x))
            return self.last(self.second(pooled).relu())

    assert ("second" in insert_gates(Pooled(), group_size=4).report.gated) == gated


def test_excluded_depthwise_leaves_the_expansion_its_own_gate() -> None:
    gated = insert_gates(
        build_network("mobilenet_v2"), group_size=16, exclude=["features.3.conv.1.0"]
    )
    assert "features.3.conv.0.0" in gated.report.gated


def test_residual_masks_stand_before_the_addition() -> None:
    gated = insert_gates(network("resnet20"), group_size=16)
    assert masks_after(gated, "gates.layer1_0_conv1") == ["layer1.0.relu"]
    assert masks_after(gated, "gates.layer1_0_conv2") == ["layer1.0.bn2"]
    assert masks_after(gated, "gates.layer2_0_downsample_0") == ["layer2.0.downsample.1"]


def test_closed_channels_are_zero() -> None:
    model = network("fashion_cnn")
    gated = insert_gates(model, group_size=8)
    layer = dict(gated.named_modules())["features.10"]
    assert isinstance(layer, nn.Conv2d)
    set_thresholds(gated, {"gates.features_7": 1e9})
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        gated(images("fashion_cnn"))
    assert not seen[0].any()
