# SPDX-License-Identifier: Apache-2.0
"""mobilenet_v1: Howard et al., arXiv:1704.04861; mobilenet_v2: Sandler et al., arXiv:1801.04381.

The second has torchvision's parameter names; torchvision has not the first.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from tvm_dynprune.nn.networks.layers import Normalise, initialise

# Expansion, output channels, blocks, stride of the first block (table 2).
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
# Output channels and stride of each depthwise separable convolution of the first (table 1).
SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2))
SEPARABLE = (*SEPARABLE, (1024, 1))


def _conv_bn_act(
    in_channels: int,
    channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] = nn.ReLU6,
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        activation(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter by a depthwise 3x3, project by a linear 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_bn_act(in_channels, hidden, 1))
        layers += [
            _conv_bn_act(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, channels, H / stride, W / stride) of (N, in_channels, H, W)."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2, width 1.0, for 224x224 images."""

    def __init__(self, classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        layers: list[nn.Module] = [_conv_bn_act(3, STEM_CHANNELS, 3, stride=2)]
        in_channels = STEM_CHANNELS
        for expansion, channels, blocks, first_stride in BLOCKS:
            for i in range(blocks):
                stride = first_stride if i == 0 else 1
                layers.append(InvertedResidual(in_channels, channels, stride, expansion))
                in_channels = channels
        layers.append(_conv_bn_act(in_channels, HEAD_CHANNELS, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(HEAD_CHANNELS, classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, 3, 224, 224) in [0, 1]."""
        return self.classifier(self.avgpool(self.features(self.normalise(x))).flatten(1))


class MobileNetV1(nn.Module):
    """MobileNetV1 for 224x224 images; `width` multiplies the channels (section 3.3)."""

    def __init__(
        self, classes: int, mean: Sequence[float], std: Sequence[float], width: float = 1.0
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        in_channels = int(STEM_CHANNELS * width)
        layers: list[nn.Module] = [_conv_bn_act(3, in_channels, 3, stride=2, activation=nn.ReLU)]
        for channels, stride in ((int(full * width), stride) for full, stride in SEPARABLE):
            layers += [
                _conv_bn_act(
                    in_channels,
                    in_channels,
                    3,
                    stride=stride,
                    groups=in_channels,
                    activation=nn.ReLU,
                ),
                _conv_bn_act(in_channels, channels, 1, activation=nn.ReLU),
            ]
            in_channels = channels
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, 3, 224, 224) in [0, 1]."""
        return self.classifier(self.avgpool(self.features(self.normalise(x))).flatten(1))
