# SPDX-License-Identifier: Apache-2.0
from itertools import combinations, pairwise

import pytest
from hypothesis import given, strategies as st

from tvm_dynprune.passes.plan_memory import Interval, plan_memory

ALIGNMENT = 64


@st.composite
def intervals(draw) -> Interval:
    first = draw(st.integers(0, 20))
    return Interval(draw(st.integers(1, 1000)), first, first + draw(st.integers(0, 5)))


@given(st.lists(intervals(), max_size=20))
def test_tensors_needed_at_the_same_time_lie_apart(tensors):
    offsets, size = plan_memory(tensors, ALIGNMENT)
    places = list(zip(offsets, tensors, strict=True))
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    assert size == max((offset + tensor.size for offset, tensor in places), default=0)
    for (start, one), (other_start, other) in combinations(places, 2):
        if one.overlaps(other):
            assert start + one.size <= other_start or other_start + other.size <= start


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=20))
def test_a_chain_takes_at_most_twice_what_two_neighbours_do(sizes):
    chain = [Interval(size, step, step + 1) for step, size in enumerate(sizes)]
    _, size = plan_memory(chain, ALIGNMENT)
    neighbours = max(aligned(one) + aligned(two) for one, two in pairwise(sizes))
    assert size <= 2 * neighbours


@pytest.mark.parametrize(
    ("tensors", "offsets", "size"),
    [
        ([], [], 0),
        ([Interval(100, 0, 1), Interval(100, 1, 2), Interval(100, 2, 3)], [0, 128, 0], 228),
        # The large one first, then what fits below it, and into the gap that is left.
        ([Interval(64, 0, 3), Interval(256, 1, 2), Interval(64, 2, 4)], [256, 0, 320], 384),
        ([Interval(256, 0, 0), Interval(64, 0, 2), Interval(128, 1, 2)], [0, 256, 0], 320),
    ],
)
def test_by_hand(tensors, offsets, size):
    assert plan_memory(tensors, ALIGNMENT) == (offsets, size)
