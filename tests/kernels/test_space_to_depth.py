# SPDX-License-Identifier: Apache-2.0
"""Strided convolutions over squares of pixels, by Winograd's algorithm, against PyTorch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.kernels.util import assert_close, compiled, plain, random, unwritten
from tests.pairwise import pairwise
from tvm_dynprune.kernels.blocking import Affine
from tvm_dynprune.kernels.conv2d import Conv2d, pack_channels
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.pooling import means_of
from tvm_dynprune.kernels.space_to_depth import (
    conv2d_over_squares,
    kernel_after,
    space_to_depth,
    weight_over_squares,
)
from tvm_dynprune.kernels.winograd import Winograd, pack_winograd_weight
from tvm_dynprune.kernels.winograd_conv2d import winograd_conv2d
from tvm_dynprune.kernels.winograd_input import winograd_input

LANES, CHANNELS = 16, 20


def convolution(
    size: tuple[int, int], kernel: int, pad: int, channels: int, batch: int, lanes: int = LANES
) -> Conv2d:
    height, width = ((side + 2 * pad - kernel) // 2 + 1 for side in size)
    return Conv2d(
        x=FeatureMap(batch, channels, *size, lanes, pad),
        y=FeatureMap(batch, CHANNELS, height, width, lanes, 1),
        kernel=(kernel, kernel),
        stride=(2, 2),
        pad=(pad, pad),
        dilation=(1, 1),
        bias=True,
        registers=16,
    )


def squares(x: np.ndarray) -> np.ndarray:
    """Channel 4 c + 2 a + b of the result is pixel (a, b) of a square."""
    n, c, height, width = x.shape
    split = x.reshape(n, c, height // 2, 2, width // 2, 2)
    return split.transpose(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, height // 2, width // 2)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 1)])
def test_pixels_of_a_square_become_channels(size: tuple[int, int], batch: int) -> None:
    spec = conv2d_over_squares(convolution(size, 7, 3, 3, batch))
    x, y = random(batch, 3, *size), unwritten(spec.x)
    compiled(space_to_depth(x.shape, spec.x))(x, y)
    even = np.pad(x, ((0, 0), (0, 0), (0, size[0] % 2), (0, size[1] % 2)))
    expected = squares(even)
    np.testing.assert_array_equal(plain(y, spec.x), expected)
    inner = tuple(slice(spec.x.halo, spec.x.halo + side) for side in expected.shape[2:])
    y[:, :, inner[0], inner[1]] = 0
    assert (y == 0).all()  # the halo


def test_the_image_is_normalised_on_the_way() -> None:
    spec = conv2d_over_squares(convolution((7, 6), 7, 3, 3, 1))
    x, y = random(1, 3, 7, 6), unwritten(spec.x)
    compiled(space_to_depth(x.shape, spec.x, Affine((-1.0, 0.5, 2.0), (2.0, -1.0, 0.25))))(x, y)
    offset, factor = np.float32([[-1, 0.5, 2], [2, -1, 0.25]]).reshape(2, 3, 1, 1)
    even = np.pad((x + offset) * factor, ((0, 0), (0, 0), (0, 1), (0, 0)))
    expected = squares(even)
    np.testing.assert_array_equal(plain(y, spec.x), expected)


@pytest.mark.parametrize(
    ("kernel", "pad", "side"), [(5, 0, 3), (5, 1, 3), (5, 2, 3), (6, 2, 3), (7, 2, 4), (7, 3, 4)]
)
def test_side_of_the_kernel_over_squares(kernel: int, pad: int, side: int) -> None:
    assert kernel_after(kernel, pad) == side


@pytest.mark.parametrize(
    *pairwise(
        kernel__pad=[(5, 0), (5, 1), (5, 2), (6, 2), (7, 2), (7, 3)],
        size=[(16, 16), (15, 22), (9, 11), (79, 101)],
        channels__batch=[(3, 1), (1, 2)],
    )
)
def test_strided_convolution(
    kernel: int, pad: int, size: tuple[int, int], channels: int, batch: int
) -> None:
    check_strided(convolution(size, kernel, pad, channels, batch))


@pytest.mark.parametrize(
    *pairwise(
        channels=[3, 1],
        kernel__pad=[(7, 3), (5, 2)],
        lanes__how=[(8, {"pools": True}), (4, {"registers": 32, "by_lane": True})],
    )
)
def test_strided_convolution_of_few_lanes(
    lanes: int, how: dict, kernel: int, pad: int, channels: int
) -> None:
    check_strided(replace(convolution((79, 101), kernel, pad, channels, 1, lanes), **how))


def check_strided(spec: Conv2d) -> None:
    (batch, channels), size = (spec.x.batch, spec.x.channels), (spec.x.height, spec.x.width)
    kernel, pad = spec.kernel[0], spec.pad[0]
    squares = conv2d_over_squares(spec)
    winograd = Winograd(squares, 4)
    x = random(batch, channels, *size)
    weight = random(CHANNELS, channels, kernel, kernel, seed=1)
    bias = random(CHANNELS, seed=2)

    inputs = unwritten(squares.x)
    compiled(space_to_depth(x.shape, squares.x))(x, inputs)
    if not winograd.fuses_input:
        u = np.full(winograd.transformed_shape, np.nan, "float32")
        compiled(winograd_input(winograd))(inputs, u)
        inputs = u
    packed = pack_winograd_weight(weight_over_squares(weight, spec), winograd)
    y, pool = unwritten(spec.y), unwritten(means_of(spec.y))
    arguments = [inputs, packed, pack_channels(bias, spec.y), y, pool]
    compiled(winograd_conv2d(winograd))(*arguments[: 5 if spec.pools else 4])

    expected = F.conv2d(
        torch.from_numpy(x).double(),
        torch.from_numpy(weight).double(),
        torch.from_numpy(bias).double(),
        stride=2,
        padding=pad,
    )
    assert_close(plain(y, spec.y), expected.numpy().astype("float32"), 5e-5)
    if spec.pools:
        means = expected.mean((2, 3), keepdim=True).numpy().astype("float32")
        assert_close(plain(pool, means_of(spec.y)), means, 5e-5)
