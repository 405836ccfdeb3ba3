# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from tests.kernels.util import (
    assert_close,
    blocked,
    compiled,
    open_channels,
    open_list,
    plain,
    random,
    unwritten,
)
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.global_average import GlobalAverage, global_average

LANES = 8


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 8), (4, 19)])
def test_mean_of_every_plane(size):
    spec = GlobalAverage(FeatureMap(2, 13, *size, LANES, halo=1))
    x, y = random(2, 13, *size), unwritten(spec.y)
    compiled(global_average(spec))(blocked(x, spec.x), y)
    assert_close(plain(y, spec.y), x.mean((2, 3), keepdims=True))


@pytest.mark.parametrize("kind", ["open", "closed", "mixed"])
def test_listed_blocks_only_and_zero_elsewhere(kind):
    spec = GlobalAverage(FeatureMap(3, 21, 4, 5, LANES), listed=True)
    is_open = open_channels(kind, 3, 21, LANES)[:, :, None, None]
    x, y = random(3, 21, 4, 5), unwritten(spec.y)
    given = np.where(is_open, x, np.float32(np.nan))
    compiled(global_average(spec))(
        blocked(given, spec.x), *open_list(is_open[:, :, 0, 0], LANES), y
    )
    assert_close(plain(y, spec.y), x.mean((2, 3), keepdims=True) * is_open)
