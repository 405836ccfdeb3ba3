# SPDX-License-Identifier: Apache-2.0
"""compact_vgg for 32x32 images: 2 M weights that learn CIFAR-10 in a few epochs.

Whitening, identity and frozen scales are what public speed runs found to learn fastest: Page, "How
to train your ResNet" (2018); Jordan, "94% on CIFAR-10 in 3.29 Seconds", arXiv:2404.00498.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_dynprune.nn.networks.layers import Normalise, initialise

STEM, WIDTHS = 32, (64, 256, 256)


class CompactVGG(nn.Module):
    """A 3x3 stem, then three blocks of two 3x3 convolutions with batch norm, ReLU and pooling.

    The stem has no batch norm: `whiten` sets its weights, which then stay. Batch norms learn their
    bias only, and the later convolutions start as the identity.
    """

    def __init__(self, classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.stem = nn.Conv2d(len(mean), STEM, 3)
        layers: list[nn.Module] = []
        channels = STEM
        for width in WIDTHS:
            layers += [*_unit(channels, width), nn.MaxPool2d(2), *_unit(width, width)]
            channels = width
        self.features = nn.Sequential(*layers, nn.MaxPool2d(3))
        self.classifier = nn.Linear(channels, classes)
        initialise(self)
        nn.init.kaiming_normal_(self.classifier.weight, nonlinearity="linear")
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=5**0.5)
                nn.init.dirac_(module.weight[: module.in_channels])
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, 3, 32, 32) in [0, 1]."""
        x = F.relu(self.stem(self.normalise(x)))
        # Small logits, so that the first steps are not spent on making confident errors small.
        return self.classifier(self.features(x).flatten(1)) / 9

    def whiten(self, images: Tensor) -> None:
        """Set the stem's weights so that its outputs on the images are uncorrelated, of variance 1.

        The filters are the strongest eigenvectors of the patches' covariance, each divided by its
        standard deviation, and their negatives, since ReLU drops one half of each.

        Parameters
        ----------
        images
            float32 (N, C, H, W) in [0, 1]; some thousands are enough.
        """
        weight = self.stem.weight
        size = weight.shape[-1]
        patches = F.unfold(self.normalise(images), size).transpose(1, 2).flatten(0, 1).double()
        covariance = torch.cov(patches.T)
        variances, vectors = torch.linalg.eigh(covariance)
        filters = (vectors / (variances + 5e-4).sqrt()).T.flip(0)[: STEM // 2]
        with torch.no_grad():
            weight.copy_(torch.cat([filters, -filters]).reshape(weight.shape))
        weight.requires_grad_(False)


def _unit(channels: int, width: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
