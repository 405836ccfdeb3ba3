# SPDX-License-Identifier: Apache-2.0
"""The engines that are measured, one module each, loaded only in the process that runs it.

A module has ``PACKAGE`` (what to import to see whether it is installed), ``SETTINGS`` (for the
report: how it is set for the lowest latency), ``prepare(model, folder)``, which converts an ONNX
file and returns what to load, and ``load(model, threads, options)``, which returns an object with

* ``set_input(x)``: (N, C, H, W) float32,
* ``infer()``: what is timed,
* ``output()``: (N, classes) float32.
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from tvm_dynprune.errors import ToolError

PEERS = {
    "onnxruntime": "onnxruntime_engine",
    "openvino": "openvino_engine",
    "mnn": "mnn_engine",
    "ncnn": "ncnn_engine",
    "torch": "torch_engine",
}
OURS = {"dynprune": "dynprune_engine"}


def engine_module(kind: str) -> ModuleType:
    """Return the module of an engine.

    Raises
    ------
    ToolError
        There is no such engine, or its package is not installed.
    """
    modules = PEERS | OURS
    if kind not in modules:
        raise ToolError(f"unknown engine {kind!r}: known are {', '.join(PEERS)}")
    module = import_module(f"{__name__}.{modules[kind]}")
    if find_spec(module.PACKAGE) is None:
        raise ToolError(
            f"engine {kind} is not installed: pip install 'tvm-dynprune[bench]', or leave it out"
        )
    return module
