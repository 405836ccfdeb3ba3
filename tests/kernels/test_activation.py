# SPDX-License-Identifier: Apache-2.0
"""Formulas of activations, vector by vector, against PyTorch."""

import json
import math

import numpy as np
import pytest
import torch
import tvm
from torch.nn import functional as F
from tvm.script.ir_builder import IRBuilder, tirx as T

from tests.kernels.util import compiled
from tvm_dynprune.kernels.activation import OPERATORS, Formula

X = np.concatenate([np.linspace(-100, 100, 4000), np.linspace(-2, 2, 4000), [0.0] * 8])
X = X.astype("float32")
LANES = 8


def kernel(formula: list) -> tvm.tirx.PrimFunc:
    with IRBuilder() as builder:
        with T.prim_func():
            x = T.arg("x", T.buffer(X.shape, "float32"))
            y = T.arg("y", T.buffer(X.shape, "float32"))
            with T.serial(0, len(X) // LANES) as i, T.vectorized(0, LANES) as v:
                value = Formula(json.dumps(formula))(x[i * LANES + v])
                T.buffer_store(y, value, [i * LANES + v])
    return builder.get()


CASES = {
    "add": (["add", "x", 1.5], lambda x: x + 1.5),
    "subtract": (["subtract", 1.0, "x"], lambda x: 1 - x),
    "multiply": (["multiply", "x", "x"], lambda x: x * x),
    "divide": (["divide", "x", 3.0], lambda x: x / 3),
    "maximum": (["maximum", "x", 0.5], lambda x: x.clamp(min=0.5)),
    "minimum": (["minimum", "x", ["negative", "x"]], lambda x: -x.abs()),
    "clip": (["clip", "x", -1.0, 2.0], lambda x: x.clamp(-1, 2)),
    "negative": (["negative", "x"], lambda x: -x),
    "abs": (["abs", "x"], torch.abs),
    "greater": (["where", ["greater", "x", 1.0], "x", 0.0], lambda x: F.threshold(x, 1, 0)),
    "where": (["where", ["greater", "x", 0.0], "x", ["tanh", "x"]], lambda x: x.maximum(x.tanh())),
    "exp": (["exp", ["minimum", "x", 1.0]], lambda x: x.clamp(max=1).exp()),
    "log": (["log", ["add", 1.0, ["abs", "x"]]], lambda x: (1 + x.abs()).log()),
    "tanh": (["tanh", "x"], torch.tanh),
    "sigmoid": (["sigmoid", "x"], torch.sigmoid),
    "erf": (["erf", "x"], torch.erf),
    "nn.relu": (["nn.relu", "x"], F.relu),
    "nn.leakyrelu": (["nn.leakyrelu", "x", 0.1], lambda x: F.leaky_relu(x, 0.1)),
    "nn.silu": (["nn.silu", "x"], F.silu),
    "nn.gelu": (["nn.gelu", "x"], F.gelu),
    "nn.gelu_tanh": (["nn.gelu_tanh", "x"], lambda x: F.gelu(x, approximate="tanh")),
    "mish": (["mish", "x"], F.mish),
    "softplus": (["softplus", "x"], F.softplus),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    formula, reference = CASES[name]
    y = np.full(X.shape, np.nan, "float32")
    compiled(kernel(formula))(X, y)
    wanted = reference(torch.from_numpy(X).double()).numpy()
    assert (np.abs(y - wanted) <= 5e-7 * np.maximum(1, np.abs(wanted))).all()


def test_log_is_exact_to_a_unit_in_the_last_place_and_as_numpy_at_the_ends() -> None:
    x = X.copy()
    x.flat[:6] = [0, -0.0, np.inf, -np.inf, np.nan, -1]
    x.flat[6:9] = [1.17549435e-38, 3.4e38, 1]
    y = np.full(X.shape, np.nan, "float32")
    compiled(kernel(["log", "x"]))(x, y)
    with np.errstate(all="ignore"):
        wanted = np.log(x.astype("float64"))
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(y[~finite], wanted[~finite].astype("float32"))
    error = np.abs(y[finite] - wanted[finite])
    assert (error <= 1.5 * np.spacing(np.abs(wanted[finite]).astype("float32") + 1e-7)).all()


def test_exp_is_exact_to_two_units_in_the_last_place() -> None:
    x = X[np.abs(X) < 87]
    y = np.full(X.shape, np.nan, "float32")
    compiled(kernel(["exp", "x"]))(X, y)
    wanted = np.exp(x.astype("float64"))
    assert (np.abs(y[np.abs(X) < 87] - wanted) <= 2 * math.ulp(1.0) * 2**29 * wanted).all()
