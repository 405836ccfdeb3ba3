# SPDX-License-Identifier: Apache-2.0
"""The shipped network on the shipped images: every lowering picks PyTorch's classes."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.util import quick_host
from tvm_dynprune.bench.run import as_input
from tvm_dynprune.compiler import compile
from tvm_dynprune.data import load_images
from tvm_dynprune.demo import NETWORK, REFERENCE
from tvm_dynprune.files import shipped
from tvm_dynprune.frontend.model import load_model
from tvm_dynprune.runtime import Session

DEMO = shipped("demo")


SLOW = [pytest.param(lowering, marks=pytest.mark.slow) for lowering in ("if", "dense")]


@pytest.mark.parametrize("lowering", ["auto", "indexed", *SLOW])
def test_classes_equal_masked_pytorch(tmp_path: Path, lowering: str) -> None:
    model = load_model(DEMO / NETWORK)
    session = Session(compile(model, quick_host(), tmp_path / "a", lowering=lowering))
    data = load_images(DEMO / "fashion-mnist-sample", "test")
    reference = np.load(DEMO / REFERENCE, allow_pickle=False)["logits"]
    logits = session.run(as_input(data.images))
    assert len(data) == len(logits) == 1000
    assert (logits.argmax(1) == reference.argmax(1)).sum() >= 999
    assert np.abs(logits - reference).max() <= 1e-4 * np.abs(reference).max()


def last_records() -> dict[str, dict]:
    """The last line of each training's log."""
    return {
        name: json.loads((DEMO / f"train_{name}.jsonl").read_text().splitlines()[-1])
        for name in ("gated", "dense")
    }


def test_the_dense_baseline_had_as_many_epochs() -> None:
    last = last_records()
    assert last["gated"]["epoch"] == last["dense"]["epoch"]
    assert last["gated"]["test_mac_cut"] >= 0.5


def test_the_gates_cost_at_most_half_a_point() -> None:
    last = last_records()
    assert last["gated"]["test_accuracy"] >= last["dense"]["test_accuracy"] - 0.005
