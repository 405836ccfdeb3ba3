# SPDX-License-Identifier: Apache-2.0
"""Half-precision ONNX files, which are computed in single precision."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.passes.util import run
from tvm_dynprune.frontend.model import load_model
from tvm_dynprune.frontend.onnx_float32 import use_float32

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 3, 3, 3))


def half_file(path: Path, *, half_input: bool, kind: int) -> None:
    """A convolution, a constant added, and ReLU, in half precision."""
    weight = helper.make_tensor("w", kind, WEIGHT.shape, WEIGHT.flatten())
    constant = helper.make_tensor("c", kind, (), [0.25])
    nodes = [
        *([] if half_input else [helper.make_node("Cast", ["x"], ["h"], to=kind)]),
        helper.make_node("Conv", ["x" if half_input else "h", "w"], ["a"], name="conv"),
        helper.make_node("Constant", [], ["quarter"], value=constant),
        helper.make_node("Add", ["a", "quarter"], ["s"]),
        helper.make_node("Relu", ["s"], ["z"]),
        helper.make_node("Cast", ["z"], ["y"], to=kind if half_input else TensorProto.FLOAT),
    ]
    given, returned = (kind, kind) if half_input else (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", given, [1, 3, 5, 6])],
        [helper.make_tensor_value_info("y", returned, [1, 4, 3, 4])],
        [weight],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


@pytest.mark.parametrize("half_input", [True, False])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_files(half_input: bool, kind: int, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    half_file(path, half_input=half_input, kind=kind)
    model = load_model(path)
    x = RNG.standard_normal((1, 3, 5, 6)).astype("float32")
    rounded = numpy_helper.to_array(onnx.load(path).graph.initializer[0]).astype("float32")
    windows = np.lib.stride_tricks.sliding_window_view(x[0], (3, 3), axis=(1, 2))
    wanted = np.maximum(np.einsum("chwij,ocij->ohw", windows, rounded) + 0.25, 0)
    for got in (run(model.mod, x)[0], model.reference(x)[0]):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got[0], wanted, atol=1e-5)


def test_graphs_within_nodes_too() -> None:
    half = TensorProto.FLOAT16
    constant = helper.make_node("Constant", [], ["k"], value=helper.make_tensor("", half, (), [3]))
    inner = helper.make_graph(
        [constant], "inner", [], [helper.make_tensor_value_info("k", half, [])]
    )
    choice = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    outer = helper.make_graph([choice], "outer", [], [])
    model = helper.make_model(outer)
    use_float32(model)
    (node,) = model.graph.node
    for attribute in node.attribute:
        assert attribute.g.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
        value = attribute.g.node[0].attribute[0].t
        assert numpy_helper.to_array(value) == 3
        assert value.data_type == TensorProto.FLOAT
