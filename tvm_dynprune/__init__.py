# SPDX-License-Identifier: Apache-2.0
"""Dynamic channel pruning of CNNs on Apache TVM: what a gate closes is really not executed.

The way of a network: `insert_gates` and training (PyTorch), `export`, then `load_model`, `compile`
and `Session`. PyTorch is needed up to the export only and is loaded when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm_dynprune.compiler import compile as compile
    from tvm_dynprune.frontend import from_exported as from_exported, from_onnx as from_onnx
    from tvm_dynprune.frontend.model import load_model as load_model
    from tvm_dynprune.nn import (
        compute_penalty as compute_penalty,
        export as export,
        insert_gates as insert_gates,
    )
    from tvm_dynprune.passes.pipeline import optimize as optimize
    from tvm_dynprune.runtime import Artifact as Artifact, Session as Session
    from tvm_dynprune.soc import load_soc as load_soc

_HOMES = {
    "Artifact": "runtime",
    "Session": "runtime",
    "compile": "compiler",
    "compute_penalty": "nn",
    "export": "nn",
    "from_exported": "frontend",
    "from_onnx": "frontend",
    "insert_gates": "nn",
    "load_model": "frontend.model",
    "load_soc": "soc",
    "optimize": "passes.pipeline",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
