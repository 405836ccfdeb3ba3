# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's CPU plug-in."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "openvino"
SETTINGS = "performance hint LATENCY, one stream, inference precision f32"


class _Engine:
    def __init__(self, model: Path, threads: int) -> None:
        ov: Any = import_module("openvino")

        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,  # the process is pinned already
        }
        self._tensor = ov.Tensor
        self._request = ov.Core().compile_model(model, "CPU", config).create_infer_request()

    def set_input(self, x: np.ndarray) -> None:
        self._x = x
        self._request.set_input_tensor(self._tensor(x, shared_memory=True))

    def infer(self) -> None:
        self._request.start_async()
        self._request.wait()

    def output(self) -> np.ndarray:
        return np.array(self._request.get_output_tensor(0).data)


def prepare(model: Path, folder: Path) -> Path:
    """OpenVINO reads ONNX."""
    return model


def load(model: Path, threads: int, options: dict[str, Any]) -> _Engine:
    """Load an ONNX file; no options."""
    return _Engine(model, threads)
