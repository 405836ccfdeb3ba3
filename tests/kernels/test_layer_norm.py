# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.kernels.util import assert_close, blocked, compiled, halo_of, plain, random, unwritten
from tests.pairwise import pairwise
from tvm_dynprune.kernels.conv2d import pack_channels
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.layer_norm import LayerNorm, layer_norm


@pytest.mark.parametrize(
    *pairwise(channels=[3, 16, 21], size=[(1, 1), (3, 5), (2, 8)], lanes=[4, 8], batch=[1, 2])
)
def test_normalises_the_channels_of_each_pixel(channels, size, lanes, batch):
    x = 3 * random(batch, channels, *size) + 5
    gamma, beta = random(channels, seed=1), random(channels, seed=2)
    spec = LayerNorm(
        FeatureMap(batch, channels, *size, lanes, 2),
        FeatureMap(batch, channels, *size, lanes, 1),
        1e-5,
    )
    y = unwritten(spec.y)
    affine = [pack_channels(values, spec.y) for values in (gamma, beta)]
    compiled(layer_norm(spec))(blocked(x, spec.x), *affine, y)
    last = torch.from_numpy(x).double().permute(0, 2, 3, 1)
    weights = (torch.from_numpy(values).double() for values in (gamma, beta))
    wanted = F.layer_norm(last, (channels,), *weights, 1e-5).permute(0, 3, 1, 2)
    assert_close(plain(y, spec.y), wanted.numpy().astype("float32"))
    assert (halo_of(y, spec.y) == 0).all()


def test_a_constant_pixel_becomes_beta():
    size = FeatureMap(1, 8, 1, 1, 8)
    y, beta = unwritten(size), random(8)
    x = np.full((1, 8, 1, 1), 7, "float32")
    compiled(layer_norm(LayerNorm(size, size, 1e-6)))(
        blocked(x, size), np.ones(8, "float32"), beta, y
    )
    assert_close(plain(y, size).ravel(), beta)
