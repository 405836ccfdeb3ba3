# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from tvm_dynprune.bench.measurement import (
    engine_statistics,
    gate_statistics,
    open_fraction,
    provenance,
    realised_fraction,
)


def test_realised_fraction_of_medians_by_input() -> None:
    """Of two inputs one is cut much, one little; each was interrupted once."""
    gated = np.array([[2.0, 2.0, 50.0], [10.0, 90.0, 10.0]])
    dense = np.array([[12.0, 12.0, 12.0], [12.0, 70.0, 12.0]])
    assert realised_fraction(gated, dense, 0.625) == pytest.approx(0.8)
    assert realised_fraction(gated, dense, 0.0) is None


def test_engine_statistics() -> None:
    statistics = engine_statistics(np.array([[3.0, 1.0, 1.0], [2.0, 4.0, 9.0]]))
    assert (statistics["median_ms"], statistics["p50_ms"]) == (2.5, 2.5)
    assert (statistics["min_ms"], statistics["max_ms"], statistics["runs"]) == (1.0, 9.0, 6)


def test_open_fraction_weighs_every_group_alike() -> None:
    groups = {"a": np.array([[True, False]]), "b": np.array([[True, True, True, True]])}
    assert open_fraction(groups) == pytest.approx([5 / 6])
    assert open_fraction({}) == pytest.approx([1.0])


def test_gate_statistics_by_class_and_group() -> None:
    decided = {"a": np.array([[True, False], [True, True], [False, False]])}
    (gate,) = gate_statistics(decided, {"a": 8}, np.array([0, 1, 1]), classes=2)
    assert gate["open_fraction"] == pytest.approx(0.5)
    assert gate["open_fraction_by_class"] == pytest.approx([0.5, 0.5])
    assert gate["open_fraction_by_group"] == pytest.approx([2 / 3, 1 / 3])


def test_provenance_names_command_machine_and_versions() -> None:
    result = provenance({"apache-tvm": "1"}, seed=3)
    assert set(result) == {"command", "date", "machine", "versions", "seed"}
    assert result["versions"]["apache-tvm"] == "1"
