# SPDX-License-Identifier: Apache-2.0
"""Gated networks as other people write them: plain PyTorch, other names, none of our modules."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 16


class Net(nn.Module):
    """Stem, one convolution whose result is multiplied, head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Conv2d(8, WIDTH, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.tail = nn.Conv2d(WIDTH, 12, 3, stride=2)
        self.head = nn.Linear(12, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.bias, -0.5, 0.5)

    def forward(self, image: Tensor) -> Tensor:
        h = self.stem(image)
        y = F.relu(self.norm(self.body(h)))
        y = F.relu(self.tail(y * self.attention(h, y)))
        return self.head(y.mean((2, 3)))

    def attention(self, h: Tensor, y: Tensor) -> Tensor:
        """(N, WIDTH, 1, 1) from the convolution's input or its result."""
        raise NotImplementedError


class HandWrittenLkam(Net):
    """1x1 convolution, global pooling, sigmoid, threshold, repeated over groups of four."""

    def __init__(self) -> None:
        super().__init__()
        self.selector = nn.Conv2d(8, WIDTH // 4, 1)
        self.register_buffer("cut", torch.tensor([0.52]))

    def attention(self, h: Tensor, y: Tensor) -> Tensor:
        score = torch.sigmoid(F.adaptive_avg_pool2d(self.selector(h), 1))
        return (score > self.cut).float().repeat_interleave(4, dim=1)


class SalientNet(Net):
    """A linear layer on the pooled input gives each channel a saliency."""

    def __init__(self) -> None:
        super().__init__()
        self.saliency = nn.Linear(8, WIDTH)

    def attention(self, h: Tensor, y: Tensor) -> Tensor:
        return self.choose(self.saliency(h.mean((2, 3))))[:, :, None, None]

    def choose(self, saliency: Tensor) -> Tensor:
        """(N, WIDTH)."""
        raise NotImplementedError


class Dgnet(SalientNet):
    """Logits at least zero."""

    def choose(self, saliency: Tensor) -> Tensor:
        return (saliency >= 0).float()


class TopK(SalientNet):
    """FBS: the winners keep their saliency."""

    def choose(self, saliency: Tensor) -> Tensor:
        saliency = saliency.relu()
        _, winners = torch.topk(saliency, WIDTH // 2, dim=1)
        return torch.zeros_like(saliency).scatter(1, winners, 1.0) * saliency


class MaskedFill(SalientNet):
    """The saliency, but nothing below a limit."""

    def choose(self, saliency: Tensor) -> Tensor:
        return torch.ones_like(saliency).masked_fill(saliency < 0.1, 0.0) * saliency


class Assigned(SalientNet):
    """ManiDP: the same, by assignment."""

    def choose(self, saliency: Tensor) -> Tensor:
        mask = torch.ones_like(saliency)
        mask[saliency < 0.1] = 0
        return mask * saliency


class Saliency(SalientNet):
    """No threshold at all: a ReLU closes what is negative."""

    def choose(self, saliency: Tensor) -> Tensor:
        return F.relu(saliency)


class Gumbel(Net):
    """Two logits for each channel; the larger one decides."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.Linear(8, 2 * WIDTH)

    def attention(self, h: Tensor, y: Tensor) -> Tensor:
        logits = self.pairs(h.mean((2, 3))).view(-1, WIDTH, 2)
        return logits.argmax(2).float()[:, :, None, None]


class SqueezeAndExcitation(Net):
    """Reads the very result that it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)

    def attention(self, h: Tensor, y: Tensor) -> Tensor:
        excited = torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3))))))
        return excited[:, :, None, None]


class BareSigmoid(SalientNet):
    """Small, but never nothing."""

    def choose(self, saliency: Tensor) -> Tensor:
        return torch.sigmoid(saliency)


GATED: dict[str, Callable[[], Net]] = {
    net.__name__: net
    for net in (HandWrittenLkam, Dgnet, TopK, MaskedFill, Assigned, Saliency, Gumbel)
}
