# SPDX-License-Identifier: Apache-2.0
"""What the networks share: normalisation of the input, and initial weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """(x - mean) / std per channel, the first step of every network here.

    Parameters
    ----------
    mean, std
        One number per channel, for images in [0, 1]. Not in the state dict, so that weights of
        other projects load by name; a checkpoint's JSON keeps them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        shape = (1, len(mean), 1, 1)
        self.register_buffer("mean", torch.tensor(mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised images (N, C, H, W) of images (N, C, H, W) in [0, 1]."""
        return (x - self.mean) / self.std


def initialise(model: nn.Module) -> None:
    """Give a network its initial weights: He et al., arXiv:1502.01852, for convolutions."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
