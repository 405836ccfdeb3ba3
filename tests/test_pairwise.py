# SPDX-License-Identifier: Apache-2.0
from itertools import combinations, product

from tests.pairwise import pairwise

VALUES = {"size": [1, 2, 3, 4], "pad__halo": [(0, 0), (1, 1), (1, 2)], "open": [False, True]}


def test_a_quick_run_shows_every_pair_and_all_combinations_are_there() -> None:
    names, rows = pairwise(**VALUES)
    assert names == "size,pad,halo,open"
    every = [(size, *pair, is_open) for size, pair, is_open in product(*VALUES.values())]
    assert [row.values for row in rows] == every
    quick = [(size, (pad, halo), is_open) for size, pad, halo, is_open in map(_quick, rows) if size]
    assert len(quick) == 12  # of 24: no fewer can show each size with each padding
    for i, j in combinations(range(3), 2):
        wanted = set(product(*(list(VALUES.values())[k] for k in (i, j))))
        assert {(row[i], row[j]) for row in quick} == wanted


def _quick(row) -> tuple:
    return (None,) * 4 if [mark.name for mark in row.marks] == ["slow"] else row.values
