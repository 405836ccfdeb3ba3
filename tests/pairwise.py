# SPDX-License-Identifier: Apache-2.0
"""Products of parameters, of which a quick run takes as many as show every pair of values."""

from itertools import combinations, product
from typing import Any

import pytest


def pairwise(**values: list) -> tuple[str, list[Any]]:
    """Arguments of ``pytest.mark.parametrize``: all combinations of the values.

    Those that a greedy cover of all pairs of values needs are tested always, the others are slow:
    most faults show with one value or with two together (Kuhn, Wallace, Gallo: "Software Fault
    Interactions and Implications for Software Testing", IEEE TSE 2004).

    Parameters
    ----------
    **values
        By parameter; parameters that belong together, such as ``a__b``, have tuples as values.
    """
    indices = list(product(*(range(len(v)) for v in values.values())))
    needed, missing = set(), {pair for row in indices for pair in _pairs(row)}
    while missing:
        best = max(indices, key=lambda row: len(missing & _pairs(row)))
        needed.add(best)
        missing -= _pairs(best)
    rows = []
    for row in indices:
        chosen = {name: values[name][i] for name, i in zip(values, row, strict=True)}
        flat = [v for name, value in chosen.items() for v in (value if "__" in name else [value])]
        rows.append(pytest.param(*flat, marks=[] if row in needed else pytest.mark.slow))
    return ",".join(values).replace("__", ","), rows


def _pairs(row: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    return set(combinations(enumerate(row), 2))
