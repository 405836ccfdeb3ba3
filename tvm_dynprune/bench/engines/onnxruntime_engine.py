# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on its CPU provider."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "onnxruntime"
SETTINGS = "all graph optimisations, sequential execution, input and output bound once"


class _Engine:
    def __init__(self, model: Path, threads: int) -> None:
        ort: Any = import_module("onnxruntime")

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._input = self._session.get_inputs()[0].name
        self._binding.bind_output(self._session.get_outputs()[0].name)

    def set_input(self, x: np.ndarray) -> None:
        self._binding.bind_cpu_input(self._input, x)

    def infer(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def output(self) -> np.ndarray:
        return self._binding.copy_outputs_to_cpu()[0]


def prepare(model: Path, folder: Path) -> Path:
    """ONNX Runtime reads ONNX."""
    return model


def load(model: Path, threads: int, options: dict[str, Any]) -> _Engine:
    """Load an ONNX file; no options."""
    return _Engine(model, threads)
