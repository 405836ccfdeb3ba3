# SPDX-License-Identifier: Apache-2.0
"""Ours: a function of an artifact."""

from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.load_tvm import load_tvm

load_tvm(compiler=False)

from tvm_dynprune.runtime import Artifact, Session  # noqa: E402

PACKAGE = "tvm"


class _Engine:
    def __init__(self, model: Path, threads: int, options: dict[str, Any]) -> None:
        self._session = Session(Artifact.load(model), threads=threads)
        if options.get("thresholds"):
            self._session.set_threshold_values(options["thresholds"])
        self._function = options.get("function", "main")

    def set_input(self, x: np.ndarray) -> None:
        self._call = self._session.prepared(x, function=self._function)

    def infer(self) -> None:
        self._outputs = self._call()

    def output(self) -> np.ndarray:
        return self._outputs[0].numpy()


def load(model: Path, threads: int, options: dict[str, Any]) -> _Engine:
    """Load an artifact; options are `function` and `thresholds`."""
    return _Engine(model, threads, options)
