# SPDX-License-Identifier: Apache-2.0
"""Models as the compiler takes them, and reading them from files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm

from tvm_dynprune.errors import ModelError, ToolError


@dataclass(frozen=True)
class Model:
    """An imported network and an independent way to compute its outputs.

    `reference` takes (N, C, H, W) float32, for the batch that the module has, and returns the
    outputs as the model's own framework computes them.
    """

    name: str
    mod: tvm.IRModule
    reference: Callable[[np.ndarray], list[np.ndarray]]
    classes: tuple[str, ...] = ()


def load_model(path: str | Path, *, batch: int | None = None) -> Model:
    """Import a ``.onnx`` or ``.pt2`` file.

    Raises
    ------
    ModelError
        The file is neither, cannot be imported, or takes another input than one float32 tensor.
    ToolError
        A ``.pt2`` file without PyTorch installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file; compile takes a .onnx or .pt2 file")
    if path.suffix == ".onnx":
        from tvm_dynprune.frontend.onnx import load_onnx

        return _checked(path, Model(path.stem, *load_onnx(path, batch=batch)))
    if path.suffix == ".pt2":
        try:
            from tvm_dynprune.frontend.exported import load_exported
        except ImportError:
            raise ToolError(
                f"{path}: reading .pt2 needs PyTorch: pip install 'tvm-dynprune[train]', or "
                "export the model to ONNX"
            ) from None
        return _checked(path, Model(path.stem, *load_exported(path, batch=batch)))
    raise ModelError(f"{path}: neither .onnx nor .pt2")


def _checked(path: Path, model: Model) -> Model:
    inputs = list(model.mod["main"].params)
    if len(inputs) != 1:
        names = ", ".join(var.name for var in inputs) or "none"
        raise ModelError(f"{path}: its inputs are {names}; a network with one image is needed")
    dtype = str(inputs[0].ty.dtype)
    if dtype != "float32":
        raise ModelError(f"{path}: its input is {dtype}; export the model with a float32 input")
    return model
