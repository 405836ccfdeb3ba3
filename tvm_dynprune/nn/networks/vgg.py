# SPDX-License-Identifier: Apache-2.0
"""vgg16_bn for 32x32 images: Simonyan, Zisserman, arXiv:1409.1556, with one linear layer."""

from collections.abc import Sequence

from torch import Tensor, nn

from tvm_dynprune.nn.networks.layers import Normalise, initialise

# Numbers are output channels of 3x3 convolutions, 0 is a 2x2 max-pooling (configuration D).
CONFIGURATION_D = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class VGG(nn.Module):
    """VGG-16 with batch norm; ``features`` has torchvision's parameter names."""

    def __init__(self, classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        layers: list[nn.Module] = []
        channels = 3
        for width in CONFIGURATION_D:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, 3, 32, 32) in [0, 1]."""
        return self.classifier(self.features(self.normalise(x)).flatten(1))
