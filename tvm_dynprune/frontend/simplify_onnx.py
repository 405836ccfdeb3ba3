# SPDX-License-Identifier: Apache-2.0
"""Bring an ONNX model into the form that TVM imports best: a recent opset, shapes as constants.

Exporters compute shapes at run time (Shape, Gather, Concat, Reshape), as they do not know the size
of the input; here it is known. TVM 0.27 lacks operators of old opsets, and ONNX's own reference
evaluator normalises a batch by its own statistics before opset 14.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference, version_converter
from onnx.reference import ReferenceEvaluator

_OPSET = 17
_MOST_ELEMENTS = 2**16  # of what is folded: weights are left to TVM


def with_recent_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in opset 17 if it is in an older one that ONNX's converter can read."""
    version = next((item.version for item in model.opset_import if not item.domain), _OPSET)
    if version >= _OPSET:
        return model
    try:
        return version_converter.convert_version(model, _OPSET)
    except Exception:  # TVM may know what the converter does not; if not, it says so
        return model


def fold_shapes(model: onnx.ModelProto, sizes: dict[str, Sequence[int]]) -> onnx.ModelProto:
    """The model for inputs of these sizes, without what depends on shapes only."""
    model = _with_sizes(model, sizes)
    while _fold(model):
        pass
    return model


def _with_sizes(model: onnx.ModelProto, sizes: dict[str, Sequence[int]]) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for item in changed.graph.input:
        dims = item.type.tensor_type.shape.dim
        for dim, size in zip(dims, sizes.get(item.name, ()), strict=False):
            dim.dim_value = size
    for item in (*changed.graph.output, *changed.graph.value_info):
        for dim in item.type.tensor_type.shape.dim:
            dim.Clear()
    return changed


def _fold(model: onnx.ModelProto) -> bool:
    """Make constants of what can be computed now; returns whether there was any."""
    graph = model.graph
    constants = {
        item.name: numpy_helper.to_array(item) for item in graph.initializer if _is_small(item)
    }
    if not any(_may_fold(node, constants) for node in graph.node):
        return False
    shapes, left, found = _shapes(model), [], False
    for node in graph.node:
        values = _evaluated(model, node, constants, shapes)
        if values is None:
            left.append(node)
            continue
        found = True
        for name, value in zip(node.output, values, strict=False):
            constants[name] = value
            graph.initializer.append(numpy_helper.from_array(value, name))
    del graph.node[:]
    graph.node.extend(left)
    return found


def _may_fold(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    known = bool(node.input) and all(name in constants for name in node.input if name)
    return known or node.op_type in ("Shape", "Size", "Constant")


def _evaluated(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    constants: dict[str, np.ndarray],
    shapes: dict[str, tuple[int, ...]],
) -> list[np.ndarray] | None:
    """The results of a node, if they are known."""
    has_graphs = any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute)
    if has_graphs or not _may_fold(node, constants):
        return None
    given = {name: constants[name] for name in node.input if name in constants}
    if node.op_type in ("Shape", "Size") and node.input[0] in shapes:
        given = {node.input[0]: np.empty(shapes[node.input[0]], "int8")}
    if len(given) < len({name for name in node.input if name}):
        return None
    inputs = [helper.make_tensor_value_info(name, 0, None) for name in given]
    outputs = [helper.make_tensor_value_info(name, 0, None) for name in node.output if name]
    single = helper.make_model(
        helper.make_graph([node], "one", inputs, outputs), opset_imports=model.opset_import
    )
    try:
        values = [np.asarray(value) for value in ReferenceEvaluator(single).run(None, given)]
    except Exception:  # it knows not all operators; TVM may
        return None
    return values if all(value.size <= _MOST_ELEMENTS for value in values) else None


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes that are known; weights are described only, as inputs."""
    graph, small = model.graph, []
    inputs = {item.name: item for item in graph.input}
    for item in graph.initializer:
        inputs.pop(item.name, None)
        if _is_small(item):
            small.append(item)
        else:
            shape = list(item.dims)
            inputs[item.name] = helper.make_tensor_value_info(item.name, item.data_type, shape)
    shell = helper.make_graph(graph.node, "shell", [*inputs.values()], graph.output, small)
    described = helper.make_model(shell, opset_imports=model.opset_import)
    inferred = shape_inference.infer_shapes(described, data_prop=True).graph
    found = {}
    for item in (*inferred.value_info, *inferred.input, *inferred.output):
        type_, dims = item.type.tensor_type, item.type.tensor_type.shape.dim
        if type_.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[item.name] = tuple(int(d.dim_value) for d in dims)
    return found | {item.name: tuple(item.dims) for item in graph.initializer}


def _is_small(item: onnx.TensorProto) -> bool:
    return int(np.prod(item.dims, dtype=np.int64)) <= _MOST_ELEMENTS
