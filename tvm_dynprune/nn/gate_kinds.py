# SPDX-License-Identifier: Apache-2.0
"""The kinds of gates; all start open, and differ in how they make logits of their input."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_dynprune.nn.gates import Gate

OPEN_BIAS = 2.0
"""What a new gate adds to its logits: the threshold is 0, so all is open."""
SPREAD = 1.5
"""Half the distance between the biases of a layer's first and last group in training."""


class LKAMGate(Gate):
    """1x1 convolution (C_in to G), then global average pooling.

    Theodorakopoulos, Pothos, Kastaniotis, Fragoulis: "Parsimonious Inference on Convolutional
    Neural Networks: Learning and applying on-line kernel activation rules", arXiv:1701.05221. The
    two steps commute, so that compiled it costs C_in * G MACs.
    """

    def __init__(self, in_channels: int, out_channels: int, group_size: int) -> None:
        super().__init__(in_channels, out_channels, group_size)
        # Zero weights, so that the gate starts open whatever the input is.
        self.conv = _open_convolution(in_channels, self.groups)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (N, G, 1, 1) of an input (N, C_in, H, W)."""
        return self.conv(x).mean((2, 3), keepdim=True)

    def spread(self) -> None:
        """Give the convolution random weights, and each group its bias."""
        _spread(self.conv)

    def macs(self, pixels: int) -> tuple[int, int]:
        """MACs for each open input channel, and those that come on top."""
        return self.groups, 0

    def _training_logits(self, x: Tensor) -> Tensor:
        # Pooling first makes the convolution next to free.
        return F.conv2d(x.mean((2, 3), keepdim=True), self.conv.weight, self.conv.bias)


class LKAMReluGate(Gate):
    """`LKAMGate` with a ReLU before the pooling, which then no longer commutes.

    The module of arXiv:1701.05221 with the nonlinearity that its patents leave open: it can count
    pixels that show something. It costs C_in * G MACs for every pixel.
    """

    def __init__(self, in_channels: int, out_channels: int, group_size: int) -> None:
        super().__init__(in_channels, out_channels, group_size)
        self.conv = nn.Conv2d(in_channels, self.groups, 1)
        nn.init.normal_(self.conv.weight, std=in_channels**-0.5)
        self.bias = nn.Parameter(torch.full((1, self.groups, 1, 1), OPEN_BIAS))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (N, G, 1, 1) of an input (N, C_in, H, W)."""
        return F.relu(self.conv(x)).mean((2, 3), keepdim=True) + self.bias

    def spread(self) -> None:
        """Give each group its bias; weights are random from the start."""
        with torch.no_grad():
            self.bias[0, :, 0, 0] += torch.linspace(-SPREAD, SPREAD, self.groups)

    def macs(self, pixels: int) -> tuple[int, int]:
        """MACs for each open input channel, and those that come on top."""
        return self.groups * pixels, 0


class SqueezeGate(Gate):
    """Global average pooling, bottleneck, ReLU, linear layer.

    The squeeze of Hu, Shen, Sun: "Squeeze-and-Excitation Networks", arXiv:1709.01507, used as a
    gate as in Gao et al.: "Dynamic Channel Pruning: Feature Boosting and Suppression",
    arXiv:1810.05331, with a threshold where that takes the k largest.

    Attributes
    ----------
    hidden
        Width of the bottleneck: a quarter of C_in, at least 16.
    """

    def __init__(self, in_channels: int, out_channels: int, group_size: int) -> None:
        super().__init__(in_channels, out_channels, group_size)
        self.hidden = max(16, in_channels // 4)
        self.squeeze = nn.Conv2d(in_channels, self.hidden, 1)
        self.conv = _open_convolution(self.hidden, self.groups)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (N, G, 1, 1) of an input (N, C_in, H, W)."""
        return self.conv(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))

    def spread(self) -> None:
        """Give the linear layer random weights, and each group its bias."""
        _spread(self.conv)

    def macs(self, pixels: int) -> tuple[int, int]:
        """MACs for each open input channel, and those that come on top."""
        return self.hidden, self.hidden * self.groups


class GumbelGate(SqueezeGate):
    """`SqueezeGate` that draws its decisions in training.

    Binary Gumbel-softmax (Jang, Gu, Poole, arXiv:1611.01144), as in LAUDNet's channel gates (Han et
    al., arXiv:2308.15949): logistic noise on the logits, so that groups near the threshold are
    tried both ways; 1 / slope is the temperature. Compiled it is a `SqueezeGate`.
    """

    def _training_logits(self, x: Tensor) -> Tensor:
        logits = self.logits(x)
        if self.mode == "soft":
            return logits
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        return logits + torch.logit(uniform) / self.slope


class BlockGate(SqueezeGate):
    """`SqueezeGate` of a residual block: one decision for all channels, if `group_size` says so.

    What ConvNet-AIG (Veit, Belongie, arXiv:1711.11503) and SkipNet (Wang et al.,
    arXiv:1711.09485) put before each block; `insert_gates` makes it of one group.
    """

    def spread(self) -> None:
        """Give the linear layer random weights and a random bias, another for each block."""
        nn.init.normal_(self.conv.weight, std=self.hidden**-0.5)
        with torch.no_grad():
            _bias(self.conv).add_(torch.empty(self.groups).uniform_(-SPREAD, SPREAD))


BLOCK = "block"
GATES: dict[str, type[Gate]] = {
    "lkam": LKAMGate,
    "lkam_relu": LKAMReluGate,
    "squeeze": SqueezeGate,
    "gumbel": GumbelGate,
    BLOCK: BlockGate,
}
"""Gate kinds: ``GATES[kind](in_channels, out_channels, group_size)``."""


def _open_convolution(in_channels: int, groups: int) -> nn.Conv2d:
    """Return a 1x1 convolution that gives `OPEN_BIAS` whatever its input is."""
    conv = nn.Conv2d(in_channels, groups, 1)
    nn.init.zeros_(conv.weight)
    nn.init.constant_(_bias(conv), OPEN_BIAS)
    return conv


def _spread(conv: nn.Conv2d) -> None:
    nn.init.normal_(conv.weight, std=conv.in_channels**-0.5)
    with torch.no_grad():
        _bias(conv).add_(torch.linspace(-SPREAD, SPREAD, conv.out_channels))


def _bias(conv: nn.Conv2d) -> nn.Parameter:
    assert isinstance(conv.bias, nn.Parameter)
    return conv.bias
