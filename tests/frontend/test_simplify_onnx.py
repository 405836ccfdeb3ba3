# SPDX-License-Identifier: Apache-2.0
"""Files of old opsets, and files that compute their shapes at run time."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import nn

from tests.passes.util import run
from tvm_dynprune.errors import ModelError
from tvm_dynprune.frontend.onnx import from_onnx, load_onnx
from tvm_dynprune.frontend.simplify_onnx import fold_shapes, with_recent_opset


class Shuffled(nn.Module):
    """What old files had trouble with: an unfolded batch norm, shapes, slices, pads, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x).relu())
        batch, channels, height, width = y.shape
        y = y.view(batch, 3, channels // 3, height, width).transpose(1, 2)
        y = y.reshape(batch, channels, height, width)
        left, right = y[:, :6], F.pad(y[:, 6:], (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1]
        y = F.interpolate(left + right, scale_factor=2.0, mode="bilinear", align_corners=False)
        return y.view(y.shape[0], -1)


OLD = {
    9: {"keep_initializers_as_inputs": True},
    11: {"do_constant_folding": False},
    13: {"dynamic_axes": {"input": {0: "batch"}}},
}


@pytest.mark.parametrize("opset", OLD)
def test_old_files_compute_what_pytorch_does(opset, tmp_path: Path):
    torch.manual_seed(0)
    model, x = Shuffled().eval(), torch.randn(1, 3, 6, 5)
    path = tmp_path / "old.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), str(path), opset_version=opset, input_names=["input"], dynamo=False,
            **OLD[opset],
        )  # fmt: skip
    mod, reference, _ = load_onnx(path)
    wanted = model(x).detach().numpy()
    for got in (run(mod, x.numpy())[0], reference(x.numpy())[0]):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def model_of(nodes: list, *, opset: int = 17, shape: tuple = (1, 4, 2, 2)) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["any"])
    graph = helper.make_graph(nodes, "graph", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def test_what_depends_on_shapes_only_becomes_constant():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("Constant", [], ["rest"], value_ints=[-1]),
        helper.make_node("Concat", ["shape", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["y"]),
    ]
    folded = fold_shapes(model_of(nodes, shape=("batch", 4, 2, 2)), {"x": (3, 4, 2, 2)})
    assert [node.op_type for node in folded.graph.node] == ["Reshape"]
    (values,) = (i for i in folded.graph.initializer if i.name == "flat")
    assert onnx.numpy_helper.to_array(values).tolist() == [3, -1]


def test_what_depends_on_the_input_stays_and_the_model_given_too():
    model = model_of([helper.make_node("Relu", ["x"], ["y"])])
    before = model.SerializeToString()
    folded = fold_shapes(model, {"x": (1, 4, 2, 2)})
    assert [node.op_type for node in folded.graph.node] == ["Relu"]
    assert model.SerializeToString() == before


@pytest.mark.parametrize("opset", [17, 20])
def test_recent_files_are_taken_as_they_are(opset):
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], opset=opset)
    assert with_recent_opset(model) is model


def test_what_the_reference_cannot_run_is_one_line(tmp_path: Path, monkeypatch):
    path = tmp_path / "relu.onnx"
    path.write_bytes(model_of([helper.make_node("Relu", ["x"], ["y"])]).SerializeToString())
    _, reference, _ = load_onnx(path)

    def refuse(*_arguments, **_options):
        raise RuntimeError("No implementation for operator 'Relu'")

    monkeypatch.setattr("tvm_dynprune.frontend.onnx.ReferenceEvaluator", refuse)
    with pytest.raises(ModelError, match="evaluator.* cannot run it: No implementation"):
        reference(np.zeros((1, 4, 2, 2), "float32"))


def test_what_the_converter_cannot_read_is_taken_as_it_is(tmp_path: Path):
    unknown = helper.make_node("Unheard", ["x"], ["y"])
    model = model_of([unknown], opset=9)
    assert with_recent_opset(model) is model
    path = tmp_path / "unknown.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="TVM cannot import it"):
        from_onnx(path)
