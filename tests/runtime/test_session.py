# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from tvm_dynprune.errors import DataError, UserError
from tvm_dynprune.nn import count_macs, set_thresholds
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.runtime import Artifact, Session


def masked_reference(network: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(images)).numpy()


def test_equals_masked_pytorch(
    artifact: Artifact, gated_network: nn.Module, images: np.ndarray
) -> None:
    wanted = masked_reference(gated_network, images)
    np.testing.assert_allclose(Session(artifact).run(images), wanted, rtol=1e-4, atol=1e-5)


def test_tells_open_groups_and_macs_of_the_last_run(
    artifact: Artifact, gated_network: nn.Module, images: np.ndarray
) -> None:
    session = Session(artifact)
    session.run(images)
    assert list(session.open_groups) == ["first", "second"]
    for gate, decided in zip(
        gates_of(gated_network).values(), session.open_groups.values(), strict=True
    ):
        assert decided.shape == (5, gate.groups)
    counted = count_macs(gated_network, torch.from_numpy(images)).executed_total
    np.testing.assert_array_equal(session.macs, counted.numpy())
    assert len(set(session.macs.tolist())) > 1, "the gates should differ between these inputs"


@pytest.mark.parametrize("threshold", [-100.0, 0.3, 100.0])
def test_thresholds_change_at_run_time(
    artifact: Artifact, gated_network: nn.Module, images: np.ndarray, threshold: float
) -> None:
    session = Session(artifact)
    session.set_thresholds(threshold)
    own = {name: float(gate.threshold) for name, gate in gates_of(gated_network).items()}
    set_thresholds(gated_network, threshold)
    try:
        wanted = masked_reference(gated_network, images)
    finally:
        set_thresholds(gated_network, own)
    np.testing.assert_allclose(session.run(images), wanted, rtol=1e-4, atol=1e-5)
    opened = np.concatenate(list(session.open_groups.values()), axis=1)
    if abs(threshold) == 100:
        assert (opened == (threshold < 0)).all()


def test_one_threshold_by_name(artifact: Artifact, images: np.ndarray) -> None:
    session = Session(artifact)
    session.set_thresholds({"second": 100.0})
    session.run(images)
    assert not session.open_groups["second"].any()
    assert session.open_groups["first"].any()


def test_unknown_threshold_names_those_there_are(artifact: Artifact) -> None:
    with pytest.raises(UserError, match=r"no threshold for third: .* first, second"):
        Session(artifact).set_thresholds({"third": 1.0})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 3, 12, 12), "float32"), "input of shape"),
        (np.zeros((1, 12, 12), "float32"), "input of shape"),
        (np.zeros((0, 1, 12, 12), "float32"), "input of shape"),
        (np.zeros((1, 1, 12, 12), "float64"), "float64"),
    ],
)
def test_wrong_input_is_one_line(artifact: Artifact, x: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        Session(artifact).run(x)
    assert "\n" not in str(raised.value)


def test_self_test_passes_and_notices_a_difference(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(artifact)
    assert session.self_test().ok
    session.set_thresholds(100.0)
    assert not session.self_test().ok


def test_prepared_calls_compute_the_same(artifact: Artifact, images: np.ndarray) -> None:
    session = Session(artifact)
    for function, run in (("main", session.run), ("dense", session.run_dense)):
        call = session.prepared(images[:1], function=function)
        for _ in range(2):
            np.testing.assert_array_equal(call()[0].numpy(), run(images[:1]))


def test_importing_the_runtime_loads_no_torch() -> None:
    code = "import tvm_dynprune.runtime, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
