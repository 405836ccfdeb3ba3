# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest

from tvm_dynprune.bench.turns import Engine, EngineError, measure_in_turns
from tvm_dynprune.runtime import Artifact


def test_times_every_input_on_every_engine(artifact: Artifact) -> None:
    images = np.random.default_rng(0).random((3, 1, 12, 12), "float32")
    engines = [Engine("gated", artifact.path), Engine("dense", artifact.path, function="dense")]
    steps: list[None] = []
    times = measure_in_turns(
        engines, images, 1, repeat=2, rounds=2, advance=lambda: steps.append(None)
    )
    assert {name: values.shape for name, values in times.items()} == {
        "gated": (3, 4),
        "dense": (3, 4),
    }
    assert all((values > 0).all() for values in times.values())
    assert len(steps) == 6


def test_an_engine_that_ends_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no artifact"):
        measure_in_turns([Engine("gated", tmp_path)], np.zeros((1, 1, 2, 2), "float32"), 1)
