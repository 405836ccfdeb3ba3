# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from tests.kernels.util import blocked, compiled, halo_of, plain, random, unwritten
from tvm_dynprune.kernels.blocking import Affine, block_channels, unblock_channels
from tvm_dynprune.kernels.feature_map import FeatureMap

SIZES = [
    FeatureMap(1, 8, 4, 5, lanes=8),
    FeatureMap(2, 21, 3, 7, lanes=8, halo=2),
    FeatureMap(3, 3, 1, 1, lanes=16, halo=1),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_blocked_tensor_holds_the_plain_one_and_zeros(size):
    x, y = random(size.batch, size.channels, size.height, size.width), unwritten(size)
    compiled(block_channels(size))(x, y)
    np.testing.assert_array_equal(plain(y, size), x)
    assert not halo_of(y, size).any()
    assert np.count_nonzero(y) == np.count_nonzero(x)  # so the padded lanes are zero too


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_unblocking_gives_the_plain_tensor_back(size):
    x = random(size.batch, size.channels, size.height, size.width)
    y = np.full_like(x, np.nan)
    compiled(unblock_channels(size))(blocked(x, size), y)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("lanes", [3, 8])
def test_an_image_is_normalised_on_the_way(lanes):
    size = FeatureMap(2, 3, 4, 5, lanes, 1)
    x, y = random(2, 3, 4, 5), unwritten(size)
    compiled(block_channels(size, Affine((-1.0, 0.5, 2.0), (2.0, -1.0, 0.25))))(x, y)
    offset, factor = np.float32([[-1, 0.5, 2], [2, -1, 0.25]]).reshape(2, 3, 1, 1)
    np.testing.assert_array_equal(plain(y, size), (x + offset) * factor)
    assert (halo_of(y, size) == 0).all()
