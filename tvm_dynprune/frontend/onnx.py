# SPDX-License-Identifier: Apache-2.0
"""ONNX → Relax."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import tvm
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tvm.relax.frontend.onnx import from_onnx as _import

from tvm_dynprune.errors import ModelError
from tvm_dynprune.frontend.layers import check_finite, name_convolutions
from tvm_dynprune.frontend.names import CLASSES_KEY
from tvm_dynprune.frontend.onnx_float32 import use_float32
from tvm_dynprune.frontend.reference_pools import AveragePool, MaxPool
from tvm_dynprune.frontend.simplify_onnx import fold_shapes, with_recent_opset


def from_onnx(path: str | Path, *, batch: int | None = None) -> tvm.IRModule:
    """Read an ONNX file into a Relax module whose parameters are constants.

    Parameters
    ----------
    path
        The file; weights in a second file beside it are found.
    batch
        Size of the first dimension where the file leaves it open (1 if None).

    Raises
    ------
    ModelError
        The file is no ONNX model, has an operator that TVM does not know, has another batch size
        than asked for, or holds NaN.
    """
    path = Path(path)
    return _to_relax(path, _read(path), batch)


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except Exception as error:
        raise ModelError(f"{path}: not a readable ONNX file ({_first_line(error)})") from error
    if not model.graph.node:  # protobuf takes an empty file for an empty model
        raise ModelError(f"{path}: not a readable ONNX file (it holds no network)")
    use_float32(model)
    return with_recent_opset(model)


def _to_relax(path: Path, model: onnx.ModelProto, batch: int | None) -> tvm.IRModule:
    parameters = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in parameters]
    shapes = {item.name: _input_shape(path, item, batch) for item in inputs}
    try:
        folded = fold_shapes(model, shapes)
        mod = _import(folded, shape_dict=shapes, keep_params_in_input=False)
    except Exception as error:
        raise ModelError(f"{path}: TVM cannot import it: {_first_line(error)}") from error
    check_finite(parameters)
    weights = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    return name_convolutions(mod, weights)


def load_onnx(
    path: Path, *, batch: int | None = None
) -> tuple[tvm.IRModule, Callable[[np.ndarray], list[np.ndarray]], tuple[str, ...]]:
    """Read an ONNX file: Relax module, reference (ONNX's own evaluator), class names if stored."""
    model = _read(path)
    mod = _to_relax(path, model, batch)

    @cache
    def evaluator() -> ReferenceEvaluator:
        return ReferenceEvaluator(model, new_ops=[MaxPool, AveragePool])

    def reference(x: np.ndarray) -> list[np.ndarray]:
        try:
            outputs = evaluator().run(None, {str(evaluator().input_names[0]): x})
        except Exception as error:
            raise ModelError(
                f"{path}: ONNX's own evaluator, which compiled networks are checked with, cannot "
                f"run it: {_first_line(error)} Export it with a newer opset"
            ) from error
        return [np.asarray(output) for output in outputs]

    stored = {item.key: item.value for item in model.metadata_props}
    return mod, reference, tuple(json.loads(stored.get(CLASSES_KEY, "[]")))


def _input_shape(path: Path, item: onnx.ValueInfoProto, batch: int | None) -> list[int]:
    sizes = [d.dim_value for d in item.type.tensor_type.shape.dim]
    if sizes and sizes[0] == 0:
        sizes[0] = batch or 1
    if not sizes or 0 in sizes[1:]:
        raise ModelError(f"{path}: input {item.name} has no fixed size; export it with one")
    if batch is not None and sizes[0] != batch:
        raise ModelError(
            f"{path}: its batch is fixed at {sizes[0]}, {batch} was asked for; export it again"
        )
    return sizes


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:200]
