# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.kernels.util import (
    assert_close,
    blocked,
    compiled,
    halo_of,
    plain,
    random,
    unwritten,
)
from tests.pairwise import pairwise
from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.convolution import Convolution
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.transposed_conv2d import (
    halo_needed,
    interleave_phases,
    phase_channels,
    phase_groups,
    phase_weight,
)

LANES = 8


@pytest.mark.parametrize(
    *pairwise(
        kernel__stride__pad__more=[
            ((2, 2), (2, 2), (0, 0), (0, 0)),
            ((3, 3), (2, 2), (1, 1), (1, 1)),
            ((4, 4), (2, 2), (1, 1), (0, 0)),
            ((5, 3), (3, 1), (2, 0), (2, 0)),
            ((3, 4), (1, 2), (1, 3), (0, 1)),
            ((4, 4), (4, 4), (3, 2), (1, 3)),
        ],
        channels=[(8, 16), (16, 5), (5, 8), (3, 1), (4, 13)],
        batch=[1, 2],
    )
)
def test_computes_what_pytorch_does(kernel, stride, pad, more, channels, batch):
    c_in, c_out = channels
    x, weight = random(batch, c_in, 5, 6), random(c_in, c_out, *kernel, seed=1)
    tensors = (torch.from_numpy(array).double() for array in (x, weight))
    wanted = F.conv_transpose2d(*tensors, None, stride, pad, more).float().numpy()
    sides = zip(kernel, stride, pad, x.shape[2:], wanted.shape[2:], strict=True)
    x_size = FeatureMap(batch, c_in, 5, 6, LANES, max(halo_needed(*side) for side in sides))
    y_size = FeatureMap(batch, c_out, *wanted.shape[2:], LANES, 1, 1)

    groups, sizes, parts = phase_groups(kernel, stride, pad), [], []
    plane = [-(-size // step) for size, step in zip(wanted.shape[2:], stride, strict=True)]
    for group in groups:
        size = FeatureMap(batch, len(group.phases) * phase_channels(c_out, LANES), *plane, LANES)
        taps, pads = (
            tuple(getattr(side, name) for side in (group.rows, group.columns))
            for name in ("taps", "pad")
        )
        spec = Conv2d(x_size, size, taps, (1, 1), pads, (1, 1), registers=16)
        convolution, part = Convolution(spec), unwritten(size)
        packed = convolution.pack(phase_weight(weight, group, stride, pad, LANES))
        compiled(convolution.kernel)(blocked(x, x_size), packed, part)
        sizes.append(size)
        parts.append(part)
    y = unwritten(y_size)
    compiled(interleave_phases(groups, sizes, y_size, stride))(*parts, y)
    assert np.isnan(y[:, 0]).all()  # what stands before it in a concatenation
    assert (halo_of(y, y_size)[:, 1:] == 0).all()
    assert_close(plain(y[:, 1:], y_size), wanted)


def test_pixels_with_equal_windows_are_one_convolution():
    assert len(phase_groups((2, 2), (2, 2), (0, 0))) == 1
    assert len(phase_groups((4, 4), (2, 2), (1, 1))) == 4


def test_no_tap_is_multiplied_twice_or_by_zero():
    groups = phase_groups((3, 3), (2, 2), (1, 1))
    taps = [len(group.phases) * group.rows.taps * group.columns.taps for group in groups]
    assert sum(taps) == 9
