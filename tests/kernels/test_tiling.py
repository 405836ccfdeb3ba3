# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given, settings, strategies as st

from tvm_dynprune.kernels.tiling import tile_size, tiles


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([4, 12, 28]))
def test_every_pixel_is_covered_once_and_the_accumulators_fit(height, width, most):
    times = np.zeros((height, width), int)
    for tile in tiles(height, width, tile_size(height, width, most)):
        assert tile.height * tile.width <= most
        for i in range(tile.row_count):
            for j in range(tile.column_count):
                row, column = tile.row + i * tile.height, tile.column + j * tile.width
                assert row + tile.height <= height
                assert column + tile.width <= width
                times[row : row + tile.height, column : column + tile.width] += 1
    assert (times == 1).all()


def test_narrow_planes_take_several_rows_at_a_time():
    assert tile_size(7, 7, 28)[0] > 1
    assert len(tiles(56, 56, tile_size(56, 56, 28))) == 1
