# SPDX-License-Identifier: Apache-2.0
"""Networks small enough to count their MACs by hand, and gates that decide what they are told."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.macs import count_macs


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
        # Without the activation the compiler would take the mean first, which costs less.
        return self.last(both).relu().mean((2, 3))


class Squeezed(nn.Module):
    """An inverted residual with hard swish and squeeze and excitation, as MobileNetV3's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.expand = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8))
        depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(8), nn.Hardswish())
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.project = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.last = nn.Sequential(nn.Conv2d(4, 6, 3), nn.SiLU())
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.stem(x))
        y = self.depthwise(nn.functional.hardswish(self.expand(x)))
        scale = self.squeeze(nn.functional.adaptive_avg_pool2d(y, 1)).relu()
        y = self.project(y * nn.functional.hardsigmoid(self.excite(scale)))
        return self.head(self.last(x + y).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two others, as ResNeXt's; then a linear layer per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reduce = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 1)
        self.grouped, self.expand = nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1)
        self.pixelwise = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.reduce(self.stem(x).relu()).relu()).relu()
        x = self.expand(x).relu().permute(0, 2, 3, 1)
        return self.pixelwise(x).relu().mean((1, 2))


class Decoder(nn.Module):
    """A transposed convolution and a resized plane between gated ones, as in a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 4, 2, 2, bias=False), nn.BatchNorm2d(4))
        self.merge, self.last = nn.Conv2d(12, 8, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.stem(x).relu()
        b = self.down(a).relu()
        c = self.merge(torch.cat([self.up(b).relu(), a], 1)).relu()
        resized = nn.functional.interpolate(b, scale_factor=2.0, mode="bilinear")
        return self.last(torch.cat([resized, c], 1))


class ChannelsLast(nn.Module):
    """A depthwise convolution with a bias between gated ones, then a block as ConvNeXt's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.stem(x).relu()).relu()
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.narrow(nn.functional.gelu(self.wide(y))).permute(0, 3, 1, 2)
        return self.last(x + y)


class Padded(nn.Module):
    """Padding and bounds as functions, behind gates: as networks from Keras have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2)
        self.conv2 = nn.Conv2d(4, 4, 3, groups=4)
        self.conv3 = nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.clamp(self.conv1(F.pad(x, (0, 1, 0, 1))), 0, 6)
        x = self.conv2(F.pad(x, (1, 1, 1, 1))).clamp(min=0.0)
        return self.fc(self.conv3(x).relu().mean((2, 3)))


class Inverted(nn.Module):
    """Expansion, depthwise, projection; with batch norm a closed channel is not 0 by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.expand = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(8), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.project(self.depthwise(self.expand(self.stem(x).relu())))
        return self.head(x).mean((2, 3))
