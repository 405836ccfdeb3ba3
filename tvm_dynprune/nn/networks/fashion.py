# SPDX-License-Identifier: Apache-2.0
"""fashion_cnn: the demo's network for Fashion-MNIST, 29 million MACs."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from tvm_dynprune.nn.networks.layers import Normalise, initialise


class FashionCNN(nn.Module):
    """Six 3x3 convolutions in pairs at 28x28, 14x14 and 7x7 pixels, then one linear layer."""

    def __init__(self, classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        widths = (1, 32, 32, 64, 64, 128, 128)
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(pairwise(widths)):
            if i in (2, 4):
                layers.append(nn.MaxPool2d(2))
            layers += [
                nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU(inplace=True),
            ]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1], classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, 1, 28, 28) in [0, 1]."""
        x = self.features(self.normalise(x))
        return self.classifier(self.avgpool(x).flatten(1))
