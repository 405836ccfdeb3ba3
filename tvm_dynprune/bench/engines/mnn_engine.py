# SPDX-License-Identifier: Apache-2.0
"""MNN's CPU backend, from a file that its converter makes."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.errors import ToolError

PACKAGE = "MNN"
SETTINGS = "precision high (fp32), power high, memory high (Winograd)"


class _Engine:
    def __init__(self, model: Path, threads: int, *, float16: bool) -> None:
        mnn: Any = import_module("MNN")

        config = {
            "backend": "CPU",
            "precision": "low" if float16 else "high",
            "numThread": threads,
            "power": "high",
            "memory": "high",
        }
        manager = mnn.nn.create_runtime_manager((config,))
        manager.set_cache("")
        self._mnn = mnn
        self._net = mnn.nn.load_module_from_file(
            str(model), [], [], runtime_manager=manager, shape_mutable=False
        )

    def set_input(self, x: np.ndarray) -> None:
        # A converted ONNX file declares its input NCHW; another layout is read as if it were.
        self._x = self._mnn.expr.placeholder(list(x.shape), self._mnn.expr.NCHW)
        self._x.write(x)

    def infer(self) -> None:
        result = self._net.forward([self._x])
        self._output = result[0] if isinstance(result, list | tuple) else result
        self._output.read()  # evaluation is lazy

    def output(self) -> np.ndarray:
        return np.array(self._mnn.expr.convert(self._output, self._mnn.expr.NCHW).read())


def prepare(model: Path, folder: Path) -> Path:
    """Convert an ONNX file.

    Raises
    ------
    ToolError
        MNN's converter fails.
    """
    out = folder / "model.mnn"
    # MNN's own wrapper of the converter installs a logging client with pip and reports home.
    command = [sys.executable, "-c", "import sys, _tools; _tools.mnnconvert(sys.argv)"]
    command += ["-f", "ONNX", "--bizCode", "bench"]
    command += ["--modelFile", str(model), "--MNNModel", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not out.is_file():
        words = (done.stderr or done.stdout or "no message").strip()[-200:]
        raise ToolError(f"MNN cannot convert {model.name}: {words}")
    return out


def load(model: Path, threads: int, options: dict[str, Any]) -> _Engine:
    """Load a ``.mnn`` file; with `float16` to compute in that."""
    return _Engine(model, threads, float16=options.get("float16", False))
