# SPDX-License-Identifier: Apache-2.0
"""ncnn, from a file that pnnx converts."""

import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.errors import ToolError

PACKAGE = "ncnn"
SETTINGS = "fp32 storage and arithmetic, Winograd, packed layout, light mode"


class _Engine:
    def __init__(self, model: Path, threads: int, *, float16: bool) -> None:
        ncnn: Any = import_module("ncnn")

        ncnn.set_omp_num_threads(threads)
        self._ncnn, self._net = ncnn, ncnn.Net()
        option = self._net.opt
        option.num_threads = threads
        option.use_vulkan_compute = False
        option.use_bf16_storage = False
        for flag in ("fp16_packed", "fp16_storage", "fp16_arithmetic"):
            setattr(option, f"use_{flag}", float16)
        for flag in ("winograd_convolution", "sgemm_convolution", "packing_layout"):
            setattr(option, f"use_{flag}", True)
        option.lightmode = True
        self._net.load_param(str(model))
        self._net.load_model(str(model.with_suffix(".bin")))

    def set_input(self, x: np.ndarray) -> None:
        self._x = [self._ncnn.Mat(sample).clone() for sample in x]

    def infer(self) -> None:
        self._outputs = []
        for sample in self._x:
            extractor = self._net.create_extractor()
            extractor.input("in0", sample)
            self._outputs.append(extractor.extract("out0")[1])

    def output(self) -> np.ndarray:
        return np.stack([np.array(output) for output in self._outputs])


def prepare(model: Path, folder: Path) -> Path:
    """Convert an ONNX file with pnnx; returns the ``.param`` file, its weights beside it.

    Raises
    ------
    ToolError
        pnnx cannot convert it.
    """
    param, scratch = folder / "model.ncnn.param", folder / "model.pnnx"
    command = ["pnnx", str(model), "fp16=0", f"ncnnparam={param}"]
    command += [f"ncnnbin={param.with_suffix('.bin')}", f"pnnxparam={scratch}.param"]
    command += [f"pnnxbin={scratch}.bin", f"pnnxpy={scratch}.py", f"ncnnpy={folder / 'ncnn.py'}"]
    command += [f"pnnxonnx={scratch}.onnx"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if not param.is_file():
        raise ToolError(f"pnnx cannot convert {model.name}: {(done.stderr or 'no message')[-200:]}")
    return param


def load(model: Path, threads: int, options: dict[str, Any]) -> _Engine:
    """Load a ``.param`` file; with `float16` to compute in that."""
    return _Engine(model, threads, float16=options.get("float16", False))
