# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest

from tvm_dynprune.bench.turns import Engine, EngineError, measure_in_turns, our_engine
from tvm_dynprune.runtime import Artifact, Session


def test_times_every_input_on_every_engine(artifact: Artifact) -> None:
    images = np.random.default_rng(0).random((3, 1, 12, 12), "float32")
    engines = [our_engine("gated", artifact.path), our_engine("dense", artifact.path, "dense")]
    steps: list[None] = []
    measured = measure_in_turns(
        engines, images, 1, repeat=2, rounds=2, advance=lambda: steps.append(None)
    )
    session = Session(artifact)
    outputs = {"gated": session.run(images), "dense": session.run_dense(images)}
    assert measured.keys() == outputs.keys()
    for name, one in measured.items():
        assert one.times_ms.shape == (3, 4)
        assert (one.times_ms > 0).all()
        assert one.peak_memory_mib > 0
        np.testing.assert_array_equal(one.outputs, outputs[name])
    assert len(steps) == 6


def test_thresholds_reach_the_engine(artifact: Artifact) -> None:
    images = np.random.default_rng(0).random((1, 1, 12, 12), "float32")
    session = Session(artifact)
    session.set_thresholds(100.0)
    engine = our_engine("closed", artifact.path, thresholds=session.threshold_values)
    measured = measure_in_turns([engine], images, 1)
    np.testing.assert_array_equal(measured["closed"].outputs, session.run(images))


def test_an_engine_that_ends_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no artifact"):
        measure_in_turns([our_engine("gated", tmp_path)], np.zeros((1, 1, 2, 2), "float32"), 1)


def test_an_engine_that_is_not_known(tmp_path: Path) -> None:
    engine = Engine("fast", "fast", tmp_path)
    with pytest.raises(EngineError, match="unknown engine 'fast'"):
        measure_in_turns([engine], np.zeros((1, 1, 2, 2), "float32"), 1)
