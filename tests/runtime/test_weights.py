# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tvm_dynprune.runtime.weights import ALIGNMENT, layout_of, map_weights, write_weights

ARRAYS = st.sampled_from(["float32", "float16", "int32"]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(max_dims=6, max_side=4))
)


@given(st.lists(ARRAYS, max_size=4))
def test_what_is_mapped_is_what_was_written(tmp_path_factory, given_arrays) -> None:
    path = tmp_path_factory.mktemp("weights") / "weights.bin"
    places = write_weights(path, given_arrays)
    mapped = map_weights(path, places)
    assert len(mapped) == len(given_arrays)
    for found, place, array in zip(mapped, places, given_arrays, strict=True):
        assert place.offset_bytes % ALIGNMENT == found.ctypes.data % ALIGNMENT == 0
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_writing_into_what_is_mapped_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    places = write_weights(path, [np.ones((2, 3), "float32")])
    before = path.read_bytes()
    map_weights(path, places)[0][:] = 2
    assert path.read_bytes() == before


def test_the_layout_is_a_line_a_tensor(tmp_path: Path) -> None:
    written = [np.zeros((2, 3), "float32"), np.zeros(5, "int32")]
    assert layout_of(write_weights(tmp_path / "w", written)) == "float32 64 2 3\nint32 128 5"
