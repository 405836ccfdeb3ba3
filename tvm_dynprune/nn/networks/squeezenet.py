# SPDX-License-Identifier: Apache-2.0
"""squeezenet1_1: Iandola et al., arXiv:1602.07360, version 1.1, with torchvision's names."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tvm_dynprune.nn.networks.layers import Normalise, initialise


class Fire(nn.Module):
    """A 1x1 squeeze, then 1x1 and 3x3 convolutions side by side, concatenated."""

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 2 * expand, H, W) of (N, in_channels, H, W)."""
        x = self.squeeze_activation(self.squeeze(x))
        left = self.expand1x1_activation(self.expand1x1(x))
        right = self.expand3x3_activation(self.expand3x3(x))
        return torch.cat([left, right], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 for 224x224 images; its classifier is a 1x1 convolution."""

    def __init__(self, classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(512, classes, 1), nn.ReLU(inplace=True)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, 3, 224, 224) in [0, 1]."""
        return self.avgpool(self.classifier(self.features(self.normalise(x)))).flatten(1)
