# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.kernels.util import assert_close, blocked, compiled, halo_of, plain, random, unwritten
from tests.pairwise import pairwise
from tvm_dynprune.kernels.activation import Activation, Formula
from tvm_dynprune.kernels.conv2d import pack_channels, pack_factors
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.group_norm import GroupNorm, group_norm

PRELU = Formula('["nn.leakyrelu", "x", ["factor", 0]]')


@pytest.mark.parametrize(
    *pairwise(
        # A channel a group, several groups in a block, several blocks in a group, one across two.
        channels__groups=[(21, 21), (20, 5), (48, 3), (24, 1), (36, 3), (30, 5)],
        size=[(1, 2), (3, 5), (9, 17)],
        lanes=[4, 8],
        batch__residual=[(1, True), (2, False)],
    )
)
def test_normalises_each_group(channels, groups, size, lanes, batch, residual):
    x, other = 3 * random(batch, channels, *size) + 5, random(batch, channels, *size, seed=4)
    gamma, beta, slope = (random(channels, seed=seed) for seed in (1, 2, 3))
    x_map, y_map, residual_map = (
        FeatureMap(batch, channels, *size, lanes, halo) for halo in (2, 1, 0)
    )
    spec = GroupNorm(x_map, y_map, groups, 1e-5, before=PRELU)
    if residual:
        spec = GroupNorm(x_map, y_map, groups, 1e-5, PRELU, residual_map, Activation(0.0, None))
    y = unwritten(spec.y)
    arguments = [pack_channels(values, spec.y) for values in (gamma, beta)]
    arguments += [pack_factors([slope], spec.y), *([blocked(other, residual_map)] * residual)]
    compiled(group_norm(spec))(blocked(x, spec.x), *arguments, y)
    weights = (torch.from_numpy(values).double() for values in (gamma, beta))
    wanted = F.group_norm(torch.from_numpy(x).double(), groups, *weights, 1e-5)
    wanted = F.prelu(wanted, torch.from_numpy(slope).double()).numpy()
    wanted = np.maximum(wanted + other, 0) if residual else wanted
    assert_close(plain(y, spec.y), wanted.astype("float32"))
    assert (halo_of(y, spec.y) == 0).all()


def test_a_constant_group_becomes_beta():
    size = FeatureMap(1, 8, 2, 2, 8)
    y, beta = unwritten(size), random(8)
    x = np.full((1, 8, 2, 2), 7, "float32")
    compiled(group_norm(GroupNorm(size, size, 2, 1e-6)))(
        blocked(x, size), np.ones(8, "float32"), beta, y
    )
    assert_close(plain(y, size), np.broadcast_to(beta.reshape(1, 8, 1, 1), x.shape))
