# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from tests.kernels.util import compiled, open_channels, open_list as expected_list
from tvm_dynprune.kernels.any_open import any_open
from tvm_dynprune.kernels.open_list import open_list


@pytest.mark.parametrize(
    ("channels", "unit"), [(8, 8), (21, 8), (64, 16), (3, 16), (37, 4), (21, 1), (1, 1)]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_open_blocks_come_first(batch, channels, unit):
    kernel = compiled(open_list(batch, channels, unit))
    for kind in ("open", "closed", "mixed"):
        is_open = open_channels(kind, batch, channels, 1)
        is_open[-1, unit : 2 * unit] = False  # a closed block between open ones
        expected = expected_list(is_open, unit)
        actual = [np.full_like(array, -1) for array in expected]
        kernel(is_open, *actual)
        for got, wanted in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_lists_of_a_small_example():
    is_open = np.array([[0, 1, 0, 0, 0, 0, 1]], bool)
    for unit, wanted in ((1, [1, 6, 0, 2, 3, 4, 5]), (2, [0, 3, 1, 2])):
        items, count = np.zeros((1, len(wanted)), "int32"), np.zeros(1, "int32")
        compiled(open_list(1, 7, unit))(is_open, items, count)
        assert items.tolist() == [wanted]
        assert count.tolist() == [2]


@pytest.mark.parametrize("group_size", [1, 4, 8])
def test_a_group_is_open_if_any_sample_opens_any_channel(group_size):
    is_open = np.zeros((3, 20), bool)
    is_open[0, 1] = is_open[2, 19] = True
    decided = np.ones(-(-20 // group_size), bool)
    compiled(any_open(3, 20, group_size))(is_open, decided)
    assert np.flatnonzero(decided).tolist() == sorted({1 // group_size, 19 // group_size})
