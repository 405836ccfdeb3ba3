# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from tests.kernels.util import compiled, lists, open_channels
from tvm_dynprune.kernels.any_open import any_open
from tvm_dynprune.kernels.open_lists import open_lists


@pytest.mark.parametrize(("channels", "lanes"), [(8, 8), (21, 8), (64, 16), (3, 16), (37, 4)])
@pytest.mark.parametrize("batch", [1, 3])
def test_open_channels_and_blocks_come_first(batch, channels, lanes):
    kernel = compiled(open_lists(batch, channels, lanes))
    for kind in ("open", "closed", "mixed"):
        is_open = open_channels(kind, batch, channels, 1)
        is_open[-1, lanes : 2 * lanes] = False  # a closed block between open ones
        expected = lists(is_open, lanes)
        actual = [np.full_like(array, -1) for array in expected]
        kernel(is_open, *actual)
        for got, wanted in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_lists_of_a_small_example():
    is_open = np.array([[0, 1, 0, 0, 0, 0, 1]], bool)
    channels, blocks = np.zeros((1, 7), "int32"), np.zeros((1, 4), "int32")
    count = np.zeros((1, 2), "int32")
    compiled(open_lists(1, 7, 2))(is_open, channels, blocks, count)
    assert channels.tolist() == [[1, 6, 0, 2, 3, 4, 5]]
    assert blocks.tolist() == [[0, 3, 1, 2]]
    assert count.tolist() == [[2, 2]]


@pytest.mark.parametrize("group_size", [1, 4, 8])
def test_a_group_is_open_if_any_sample_opens_any_channel(group_size):
    is_open = np.zeros((3, 20), bool)
    is_open[0, 1] = is_open[2, 19] = True
    decided = np.ones(-(-20 // group_size), bool)
    compiled(any_open(3, 20, group_size))(is_open, decided)
    assert np.flatnonzero(decided).tolist() == sorted({1 // group_size, 19 // group_size})
