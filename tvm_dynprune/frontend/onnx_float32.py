# SPDX-License-Identifier: Apache-2.0
"""Half-precision ONNX models in single precision, in which CPUs without float16 compute anyway.

Which precision a network is compiled for is `compile`'s to say, not the file's.
"""

import numpy as np
import onnx
from onnx import numpy_helper

_FLOAT = onnx.TensorProto.FLOAT
_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def use_float32(model: onnx.ModelProto) -> None:
    """Change the model: float32 for every float16 and bfloat16, inputs and outputs included.

    What was rounded to half precision stays so: weights. What would be rounded when it is computed
    is not.
    """
    _convert_graph(model.graph)


def _convert_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _convert_tensor(tensor)
    for item in (*graph.input, *graph.output, *graph.value_info):
        if item.type.tensor_type.elem_type in _HALF:
            item.type.tensor_type.elem_type = _FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            _convert_tensor(attribute.t)
            if attribute.HasField("g"):
                _convert_graph(attribute.g)
            for inner in attribute.graphs:
                _convert_graph(inner)
            if attribute.name in ("to", "dtype") and attribute.i in _HALF:
                attribute.i = _FLOAT


def _convert_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _HALF:
        value = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
