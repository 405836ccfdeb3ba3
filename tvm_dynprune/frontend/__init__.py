# SPDX-License-Identifier: Apache-2.0
"""From a PyTorch export or an ONNX file to Relax; each importer is loaded when first used."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm_dynprune.frontend.exported import from_exported as from_exported
    from tvm_dynprune.frontend.onnx import from_onnx as from_onnx

_HOMES = {"from_exported": "exported", "from_onnx": "onnx"}

__all__ = ["from_exported", "from_onnx"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
