# SPDX-License-Identifier: Apache-2.0
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tvm_dynprune.frontend.reference_pools import AveragePool, MaxPool


def evaluate(name: str, x: np.ndarray, *, fast: bool = True, **attributes) -> np.ndarray:
    node = helper.make_node(name, ["x"], ["y"], **attributes)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "pool",
        [value("x", TensorProto.FLOAT, x.shape)],
        [value("y", TensorProto.FLOAT, (None,) * x.ndim)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    onnx.checker.check_model(model)
    ops = [MaxPool, AveragePool] if fast else []
    return np.asarray(ReferenceEvaluator(model, new_ops=ops).run(None, {"x": x})[0])


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype("float32") - 5


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "dilation"),
    [(3, 2, 1, 1), (2, 2, 0, 1), (3, 1, 1, 2), (3, 3, 1, 1)],
)
def test_maxima_as_pytorch_computes_them(kernel, stride, pad, dilation, ceil):
    x = image(2, 3, 8, 11)
    wanted = F.max_pool2d(torch.from_numpy(x), kernel, stride, pad, dilation, ceil).numpy()
    got = evaluate(
        "MaxPool",
        x,
        kernel_shape=[kernel] * 2,
        strides=[stride] * 2,
        pads=[pad] * 4,
        dilations=[dilation] * 2,
        ceil_mode=int(ceil),
    )
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_means_as_pytorch_computes_them(kernel, stride, pad, count):
    x = image(2, 3, 7, 10)
    wanted = F.avg_pool2d(torch.from_numpy(x), kernel, stride, pad, False, count).numpy()
    sides = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
    got = evaluate("AveragePool", x, count_include_pad=int(count), **sides)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((1, 2, 9), {"kernel_shape": [3], "strides": [2]}),
        ((1, 2, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ],
)
def test_what_is_unusual_is_as_it_was(name, shape, attributes):
    x = image(*shape)
    slow = evaluate(name, x, fast=False, **attributes)
    np.testing.assert_array_equal(evaluate(name, x, **attributes), slow)
