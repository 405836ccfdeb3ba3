# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from tvm_dynprune.bench.layers import OTHER, measure_layers, measure_peak
from tvm_dynprune.runtime import Artifact, Session


def test_every_convolution_has_a_row_and_a_time(artifact: Artifact, images: np.ndarray) -> None:
    result = measure_layers(artifact, images[:1], repeat=3)
    rows = {row["layer"]: row for row in result["layers"]}
    assert list(rows) == [*(layer["layer"] for layer in artifact.manifest.dense_layers), OTHER]
    assert all(row["dense_ms"] > 0 and row["gated_ms"] > 0 for row in rows.values())
    assert rows["stem"]["mac_cut"] == 0
    session = Session(artifact)
    session.run(images[:1])
    first = session.open_channels[0].mean()
    assert rows["first"]["mac_cut"] == pytest.approx(1 - first)
    flop = 2 * 12 * 12 * 9 * 16
    assert rows["stem"]["dense_gflops"] == pytest.approx(flop / 1e6 / rows["stem"]["dense_ms"])


def test_the_kernels_of_a_run_are_those_of_the_manifest(
    artifact: Artifact, images: np.ndarray
) -> None:
    session = Session(artifact)
    for function in ("main", "dense"):
        planned = [name for name, _ in artifact.manifest.kernels[function]]
        ran = [name for name, _ in session.kernel_ticks(images[:1], function=function)]
        assert [name for name in ran if name in planned] == planned


def test_the_peak_is_one_that_a_core_can_have() -> None:
    assert 1 < measure_peak() < 1000
