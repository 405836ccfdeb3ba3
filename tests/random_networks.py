# SPDX-License-Identifier: Apache-2.0
"""Random gated CNNs in plain PyTorch, drawn by hypothesis."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, strategies as st
from torch import Tensor, nn

CHANNELS = (3, 4, 6, 8, 12, 16, 20, 24, 32, 48)
ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6}
THRESHOLDS = {"open": -1e6, "closed": 1e6, "mixed": 0.0}
SETTINGS = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}


@dataclass(frozen=True)
class GateSpec:
    """How a layer is gated: neighbours that open together, how many are open, mask or saliency."""

    group_size: int
    openness: str
    scaled: bool


@dataclass(frozen=True)
class Layer:
    """One step of a network; fields that a kind does not have are ignored."""

    kind: str  # conv, depthwise, residual, inverted, concat, max, average
    channels: int
    kernel: tuple[int, int]
    stride: int
    bias: bool
    norm: bool
    activation: str
    gate: GateSpec | None


@dataclass(frozen=True)
class Network:
    """What a network is made of; the weights follow from `seed`."""

    batch: int
    size: tuple[int, int]
    layers: tuple[Layer, ...]
    classifies: bool
    seed: int


@st.composite
def gate_specs(draw: st.DrawFn, channels: int) -> GateSpec:
    sizes = [size for size in (1, 2, 3, 4, 8, 16, channels) if channels % size == 0]
    return GateSpec(
        draw(st.sampled_from(sizes)),
        draw(st.sampled_from(["mixed", "mixed", "mixed", "open", "closed"])),
        draw(st.booleans()),
    )


@st.composite
def layers(draw: st.DrawFn, channels_in: int) -> Layer:
    kinds = ["conv", "conv", "depthwise", "residual", "inverted", "concat", "max", "average"]
    kind = draw(st.sampled_from(kinds))
    keeps = kind in ("depthwise", "residual", "max", "average")
    channels = channels_in if keeps else draw(st.sampled_from(CHANNELS))
    return Layer(
        kind,
        channels,
        draw(st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 3), (3, 2)])),
        draw(st.sampled_from([1, 1, 2])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from(list(ACTIVATIONS))),
        draw(st.none() | gate_specs(channels)) if kind not in ("max", "average") else None,
    )


@st.composite
def networks(draw: st.DrawFn) -> Network:
    first = draw(st.sampled_from(CHANNELS))
    stem = Layer("conv", first, (3, 3), 1, True, True, "relu", draw(st.none() | gate_specs(first)))
    drawn = [stem]
    for _ in range(draw(st.integers(2, 5))):
        before = drawn[-1]
        width = before.channels + (8 if before.kind == "concat" else 0)
        drawn.append(draw(layers(width)))
    return Network(
        draw(st.integers(1, 3)),
        (draw(st.integers(6, 13)), draw(st.integers(6, 13))),
        tuple(drawn),
        draw(st.booleans()),
        draw(st.integers(0, 2**16)),
    )


class Gate(nn.Module):
    """Mask (N, C, 1, 1) from the mean of a tensor; keeps the decision of its last call."""

    def __init__(self, channels_in: int, channels: int, spec: GateSpec) -> None:
        super().__init__()
        self.spec = spec
        self.score = nn.Linear(channels_in, channels // spec.group_size)
        # Scores far from the threshold, so that rounding does not decide.
        nn.init.normal_(self.score.weight, std=3.0)
        nn.init.normal_(self.score.bias, std=3.0)
        self.register_buffer("threshold", torch.tensor(THRESHOLDS[spec.openness]))

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(x.mean((2, 3)))
        mask = (score > self.threshold).float()
        if self.spec.scaled:
            mask = mask * torch.tanh(score)
        return mask.repeat_interleave(self.spec.group_size, dim=1)[:, :, None, None]


class Block(nn.Module):
    """One layer of a network."""

    def __init__(self, channels_in: int, layer: Layer) -> None:
        super().__init__()
        self.layer, width = layer, layer.channels
        kernel, pad = layer.kernel, (layer.kernel[0] // 2, layer.kernel[1] // 2)
        if layer.kind in ("residual", "inverted"):
            kernel, pad = (3, 3), (1, 1)
        if layer.kind == "concat" and 2 in kernel:  # both parts must be of one size
            kernel, pad = (3, 3), (1, 1)
        stride = 1 if layer.kind in ("residual", "concat") else layer.stride
        if layer.kind == "inverted":
            self.expand = nn.Conv2d(channels_in, width, 1)
            self.project = nn.Conv2d(width, width, 1)
            channels_in = width
        if layer.kind == "concat":
            self.beside = nn.Conv2d(channels_in, 8, 1)
        groups = channels_in if layer.kind in ("depthwise", "inverted") else 1
        if layer.kind not in ("max", "average"):
            self.conv = nn.Conv2d(
                channels_in, width, kernel, stride, pad, groups=groups, bias=layer.bias
            )
        self.norm = nn.BatchNorm2d(width) if layer.norm else nn.Identity()
        self.activation = ACTIVATIONS[layer.activation]()
        source = self.expand.in_channels if layer.kind == "inverted" else channels_in
        self.gate = None if layer.gate is None else Gate(source, width, layer.gate)

    def forward(self, x: Tensor) -> Tensor:
        kind = self.layer.kind
        if kind in ("max", "average"):
            pool = F.max_pool2d if kind == "max" else F.avg_pool2d
            return pool(x, 3, self.layer.stride, 1)
        mask = None if self.gate is None else self.gate(x)
        source = F.relu6(self.expand(x)) if kind == "inverted" else x
        y = self.norm(self.conv(source))
        y = y if kind == "residual" else self.activation(y)
        y = y if mask is None else y * mask
        if kind == "residual":
            return self.activation(y + x)
        if kind == "inverted":
            return self.project(y)
        if kind == "concat":
            return torch.cat([y, F.relu(self.beside(x))], dim=1)
        return y


class RandomNetwork(nn.Module):
    """The network of a specification, with random weights and batch statistics."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        torch.manual_seed(network.seed)
        blocks, channels = [], 3
        for layer in network.layers:
            blocks.append(Block(channels, layer))
            channels = layer.channels + (8 if layer.kind == "concat" else 0)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 7) if network.classifies else None
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(x)
        return y if self.head is None else self.head(y.mean((2, 3)))
