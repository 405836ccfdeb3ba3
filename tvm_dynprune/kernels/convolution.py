# SPDX-License-Identifier: Apache-2.0
"""The kernels of one convolution, as its schedule says: one, or Winograd's two."""

from functools import cached_property

import numpy as np
from tvm.tirx import PrimFunc

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.direct_conv2d import (
    direct_conv2d,
    direct_weight_shape,
    pack_direct_weight,
)
from tvm_dynprune.kernels.winograd import Winograd, pack_winograd_weight
from tvm_dynprune.kernels.winograd_conv2d import winograd_conv2d
from tvm_dynprune.kernels.winograd_input import winograd_input


class Convolution:
    """What `spec.schedule` makes of `spec`.

    `winograd` is None for a direct convolution. Without a `first` kernel, `kernel` reads x; else it
    reads what `first`, which reads x, [list of open blocks, count], wrote.
    """

    def __init__(self, spec: Conv2d) -> None:
        self.spec = spec
        algorithm = spec.schedule.algorithm
        self.winograd = None if algorithm == "direct" else Winograd(spec, int(algorithm[-1]))

    @cached_property
    def first(self) -> PrimFunc | None:
        """Winograd's transform of the input."""
        if self.winograd is None or self.winograd.fuses_input:
            return None
        return winograd_input(self.winograd)

    @cached_property
    def kernel(self) -> PrimFunc:
        """The kernel that writes y; its parameters are those of `Conv2dBuilder`."""
        return direct_conv2d(self.spec) if self.winograd is None else winograd_conv2d(self.winograd)

    @property
    def can_pool(self) -> bool:
        """Whether `kernel` can pool y on the way: a vector of y's channels at a time, in order."""
        return self.spec.visit in ("all", "blocks")

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the packed weights."""
        if self.winograd is None:
            return direct_weight_shape(self.spec)
        return self.winograd.weight_shape

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Weights (C_out, C_in, KH, KW) float32 as the kernel reads them."""
        if self.winograd is None:
            return pack_direct_weight(weight, self.spec)
        return pack_winograd_weight(weight, self.winograd)
