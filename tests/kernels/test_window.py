# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.kernels.util import (
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
from tvm_dynprune.kernels.activation import Activation, Formula
from tvm_dynprune.kernels.conv2d import pack_channels, pack_factors
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.window import Window, pack_depthwise_weight, window

LANES = 8
RELU6 = Activation(0.0, 6.0)


def sizes(size, kernel, stride, pad, dilation=(1, 1), *, ceil=False):
    """(H, W) of the result, as PyTorch counts it."""
    result = []
    for axis in (0, 1):
        room = size[axis] + 2 * pad[axis] - dilation[axis] * (kernel[axis] - 1) - 1
        count = (-(-room // stride[axis]) if ceil else room // stride[axis]) + 1
        starts_inside = (count - 1) * stride[axis] < size[axis] + pad[axis]
        result.append(count if starts_inside else count - 1)
    return tuple(result)


def spec_of(kind, *, kernel, stride, pad, size, channels=21, batch=1, ceil=False, **fields):
    dilation = fields.get("dilation", (1, 1))
    out = sizes(size, kernel, stride, pad, dilation, ceil=ceil)
    halo = 0 if kind == "max" else max(pad)
    return Window(
        kind,
        FeatureMap(batch, channels, *size, LANES, halo),
        FeatureMap(batch, channels, *out, LANES, 1),
        kernel,
        stride,
        pad,
        registers=16,
        **fields,
    )


def check(spec: Window, reference, x: np.ndarray, extra=()) -> None:
    """Compare with `reference`; under a list, for all open, all closed and mixed blocks."""
    kernel = compiled(window(spec))
    for kind in ("open", "closed", "mixed") if spec.listed else ("open",):
        is_open = open_channels(kind, spec.y.batch, spec.y.channels, LANES)
        given = np.where(is_open[:, :, None, None], x, np.nan) if spec.listed else x
        arguments = [blocked(given.astype("float32"), spec.x), *extra]
        if spec.listed:
            arguments += open_list(is_open, LANES)
        y, pool = unwritten(spec.y), unwritten_pool(spec.y)
        kernel(*arguments, y, *([pool] if spec.pools else []))
        closed = 0.0 if spec.fill else np.nan
        expected = np.where(is_open[:, :, None, None], reference, closed)
        assert_close(plain(y, spec.y), expected.astype("float32"))
        if spec.pools:
            assert_pooled(pool, expected)
        halo = halo_of(y, spec.y)
        written = np.ones(halo.shape[:2], bool)
        if spec.listed and not spec.fill:
            written = is_open[:, ::LANES]
        assert (halo[written] == 0).all()
        assert np.isnan(halo[~written]).all()


def test_a_slope_for_each_channel():
    prelu = Formula('["nn.leakyrelu", "x", ["factor", 0]]')
    size = {"kernel": (1, 1), "stride": (1, 1), "pad": (0, 0), "size": (4, 4)}
    spec = spec_of("depthwise", **size, after=prelu, scale=True)
    x, weight, slope = random(1, 21, 4, 4), random(21, 1, 1, 1, seed=1), random(21, seed=2)
    scale = random(1, 21, 1, 1, seed=3)
    y = x * weight.reshape(1, 21, 1, 1)
    reference = np.where(y > 0, y, y * slope.reshape(1, 21, 1, 1)) * scale
    extra = [pack_depthwise_weight(weight, spec), pack_factors([slope], spec.y), scale]
    check(spec, reference, x, extra)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((5, 5), (2, 2), (2, 2), (1, 1)),
        ((3, 1), (1, 2), (1, 0), (1, 1)),
        ((3, 3), (1, 1), (2, 2), (2, 2)),
    ],
)
def test_depthwise(kernel, stride, pad, dilation, listed):
    spec = spec_of(
        "depthwise", kernel=kernel, stride=stride, pad=pad, size=(9, 7), dilation=dilation,
        bias=True, after=RELU6, listed=listed, fill=True,
    )  # fmt: skip
    x, weight, bias = random(1, 21, 9, 7), random(21, 1, *kernel, seed=1), random(21, seed=2)
    reference = F.conv2d(
        *map(torch.from_numpy, (x, weight, bias)), stride, pad, dilation, groups=21
    ).clamp(0, 6)
    extra = [pack_depthwise_weight(weight, spec), pack_channels(bias, spec.y)]
    check(spec, reference.numpy(), x, extra)


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("pools", [False, True])
def test_depthwise_with_a_scale(batch, fill, pools):
    spec = spec_of(
        "depthwise", kernel=(3, 3), stride=(1, 1), pad=(1, 1), size=(4, 5), batch=batch,
        scale=True, listed=True, fill=fill, pools=pools,
    )  # fmt: skip
    x, weight, scale = random(batch, 21, 4, 5), random(21, 1, 3, 3), random(batch, 21, 1, 1)
    reference = F.conv2d(torch.from_numpy(x), torch.from_numpy(weight), None, 1, 1, groups=21)
    check(spec, reference.numpy() * scale, x, [pack_depthwise_weight(weight, spec), scale])


POOLS = [
    ((2, 2), (2, 2), (0, 0), False),
    ((3, 3), (2, 2), (1, 1), False),
    ((3, 2), (1, 2), (1, 0), False),
    ((3, 3), (2, 2), (0, 0), True),
    ((3, 3), (3, 3), (1, 1), True),
    ((2, 2), (2, 2), (0, 0), True),
]


@pytest.mark.parametrize("size", [(9, 7), (8, 8)])
@pytest.mark.parametrize(("kernel", "stride", "pad", "ceil"), POOLS)
def test_max_pooling(kernel, stride, pad, ceil, size):
    spec = spec_of("max", kernel=kernel, stride=stride, pad=pad, size=size, ceil=ceil, pools=True)
    x = random(1, 21, *size) - 5  # below zero, so that a zero of the padding would win
    reference = F.max_pool2d(torch.from_numpy(x), kernel, stride, pad, ceil_mode=ceil)
    check(spec, reference.numpy(), x)


@pytest.mark.parametrize(("kernel", "pad"), [((2, 2), (1, 1)), ((3, 3), (1, 1))])
def test_dilated_max_pooling(kernel, pad):
    spec = spec_of("max", kernel=kernel, stride=(1, 1), pad=pad, size=(6, 7), dilation=(2, 2))
    x = random(1, 21, 6, 7) - 5
    reference = F.max_pool2d(torch.from_numpy(x), kernel, (1, 1), pad, (2, 2))
    check(spec, reference.numpy(), x)


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "pad", "ceil"), [p for p in POOLS if not p[-1]])
def test_average_pooling(kernel, stride, pad, ceil, count_padding):
    spec = spec_of(
        "average", kernel=kernel, stride=stride, pad=pad, size=(9, 8), count_padding=count_padding
    )
    x = random(1, 21, 9, 8)
    reference = F.avg_pool2d(
        torch.from_numpy(x), kernel, stride, pad, count_include_pad=count_padding
    )
    check(spec, reference.numpy(), x)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_pooling_of_listed_blocks(kind, fill, batch):
    spec = spec_of(
        kind, kernel=(2, 2), stride=(2, 2), pad=(0, 0), size=(6, 4), batch=batch, listed=True,
        fill=fill,
    )  # fmt: skip
    x = random(batch, 21, 6, 4)
    pool = F.max_pool2d if kind == "max" else F.avg_pool2d
    check(spec, pool(torch.from_numpy(x), 2).numpy(), x)
