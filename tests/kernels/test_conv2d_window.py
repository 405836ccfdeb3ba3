# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.kernels.util import (
    OPENNESS,
    assert_close,
    assert_pooled,
    blocked,
    compiled,
    halo_of,
    open_channels,
    open_list,
    plain,
    random,
    unwritten,
    unwritten_pool,
)
from tests.pairwise import pairwise
from tvm_dynprune.kernels.activation import Activation
from tvm_dynprune.kernels.conv2d import Conv2d, pack_channels
from tvm_dynprune.kernels.conv2d_window import Conv2dWindow, conv2d_window
from tvm_dynprune.kernels.direct_conv2d import pack_direct_weight
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.window import Window, pack_depthwise_weight

LANES, C_IN, C_OUT = 8, 12, 21
RELU, RELU6 = Activation(0.0, None), Activation(0.0, 6.0)
# kind, kernel, stride, pad, dilation, whether PyTorch rounds the size up
WINDOWS = {
    "depthwise": ("depthwise", 3, 1, 1, 1, False),
    "depthwise in steps of 2": ("depthwise", 5, 2, 2, 1, False),
    "depthwise with holes": ("depthwise", 3, 1, 2, 2, False),
    "depthwise without padding": ("depthwise", 2, 2, 0, 1, False),
    "max pooling": ("max", 3, 2, 0, 1, True),
    "max pooling that leaves rows out": ("max", 1, 3, 0, 1, False),
    "max pooling, padded": ("max", 3, 2, 1, 1, False),
    "average pooling": ("average", 3, 1, 1, 1, False),
}


@dataclass(frozen=True)
class Case:
    """A convolution and what follows it."""

    window: str
    kernel: int
    size: tuple[int, int]
    batch: int
    listed: bool
    open_in: bool
    pools: bool
    fill: bool
    registers: int

    def spec(self, height: int, width: int) -> Conv2dWindow:
        """For a window's result of that size."""
        kind, side, stride, pad, dilation, _ = WINDOWS[self.window]
        h, w = self.size
        halo = 0 if kind == "max" else pad
        between = FeatureMap(self.batch, C_OUT, h, w, LANES, halo)
        conv2d = Conv2d(
            x=FeatureMap(self.batch, C_IN, h, w, LANES, self.kernel // 2),
            y=between,
            kernel=(self.kernel,) * 2,
            stride=(1, 1),
            pad=(self.kernel // 2,) * 2,
            dilation=(1, 1),
            bias=True,
            before=RELU6,
            open_in=self.open_in,
            unit_in=1,
            visit="blocks" if self.listed else "all",
            registers=self.registers,
        )
        window = Window(
            kind,
            between,
            FeatureMap(self.batch, C_OUT, height, width, LANES, 1),
            (side, side),
            (stride, stride),
            (pad, pad),
            (dilation, dilation),
            bias=kind == "depthwise",
            after=RELU if kind == "depthwise" else None,
            count_padding=False,
            listed=self.listed,
            fill=self.fill,
            pools=self.pools,
            registers=self.registers,
        )
        return Conv2dWindow(conv2d, window)

    def followed(self, between: torch.Tensor, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """What the window makes of the convolution's result, by PyTorch."""
        kind, side, stride, pad, dilation, ceil = WINDOWS[self.window]
        if kind == "max":
            return F.max_pool2d(between, side, stride, pad, dilation, ceil).numpy()
        if kind == "average":
            return F.avg_pool2d(between, side, stride, pad, count_include_pad=False).numpy()
        weight, bias = torch.from_numpy(weight), torch.from_numpy(bias)
        y = F.conv2d(between, weight, bias, stride, pad, dilation, groups=C_OUT)
        return y.relu().numpy()


@pytest.mark.parametrize(
    *pairwise(
        window=list(WINDOWS),
        kernel=[1, 3],
        size=[(9, 7), (10, 16), (3, 40)],
        batch=[1, 2],
        listed=[False, True],
        open_in=[False, True],
        pools=[False, True],
        fill=[False, True],
        registers=[10, 32],
    )
)
def test_equals_the_convolution_and_then_the_window(
    window, kernel, size, batch, listed, open_in, pools, fill, registers
):
    case = Case(window, kernel, size, batch, listed, open_in, pools, fill, registers)
    x = random(case.batch, C_IN, *case.size)
    weight, bias = random(C_OUT, C_IN, case.kernel, case.kernel, seed=1), random(C_OUT, seed=2)
    side = WINDOWS[case.window][1]
    then, then_bias = random(C_OUT, 1, side, side, seed=3), random(C_OUT, seed=4)
    run = None
    for kind in OPENNESS:
        open_in = open_channels(kind if case.open_in else "open", case.batch, C_IN, 1)
        is_open = open_channels(kind if case.listed else "open", case.batch, C_OUT, LANES, seed=2)
        given = torch.from_numpy(x * open_in[:, :, None, None])
        args = torch.from_numpy(weight), torch.from_numpy(bias)
        between = F.conv2d(given, *args, padding=case.kernel // 2).clamp(0, 6)
        reference = case.followed(between, then, then_bias)
        spec = case.spec(*reference.shape[2:])
        run = run or compiled(conv2d_window(spec))
        arguments = [
            blocked(np.where(open_in[:, :, None, None], x, np.nan), spec.conv2d.x),
            pack_direct_weight(weight, spec.by_row),
            pack_channels(bias, spec.conv2d.y),
        ]
        arguments += open_list(open_in, 1) if case.open_in else ()
        arguments += open_list(is_open, LANES) if case.listed else ()
        if spec.window.kind == "depthwise":
            arguments += [pack_depthwise_weight(then, spec.window)]
            arguments += [pack_channels(then_bias, spec.window.y)]
        y, pool = unwritten(spec.window.y), unwritten_pool(spec.window.y)
        run(*arguments, y, *([pool] if case.pools else []))
        closed = 0.0 if case.fill else np.nan
        expected = np.where(is_open[:, :, None, None], reference, closed).astype("float32")
        assert_close(plain(y, spec.window.y), expected)
        if case.pools:
            assert_pooled(pool, expected)
        written = is_open[:, ::LANES] | case.fill
        assert (halo_of(y, spec.window.y)[written] == 0).all()
