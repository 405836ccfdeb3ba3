# SPDX-License-Identifier: Apache-2.0
"""From a PyTorch export or an ONNX file to Relax."""

from tvm_dynprune.frontend.onnx import from_onnx as from_onnx

__all__ = ["from_exported", "from_onnx"]


def __getattr__(name: str) -> object:
    # torch is an extra: only what needs it loads it.
    if name == "from_exported":
        from tvm_dynprune.frontend.exported import from_exported

        return from_exported
    raise AttributeError(name)
