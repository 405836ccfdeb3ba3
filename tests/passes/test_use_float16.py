# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from tvm import relax
from tvm.script import ir as I, relax as R, tirx as T

from tests.kernels.util import quick_host
from tests.linked import virtual_machine
from tests.passes.util import assert_pass
from tests.random_networks import SETTINGS, Network, RandomNetwork, networks
from tvm_dynprune.errors import NotLoweredError
from tvm_dynprune.frontend.exported import from_exported
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.use_float16 import UseFloat16, check_weights

TOLERANCE = 3e-2  # of the output's scale


def test_what_lies_between_input_and_output() -> None:
    @I.ir_module
    class Before:
        @T.prim_func(private=True)
        def f(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
            for i in range(4):
                y[i] = x[i] + T.float32(1)

        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            R.func_attr({"relax.force_pure": True})
            a = R.builtin.alloc_tensor(R.shape([4]), R.dtype("float32"), R.prim_value(0))
            Before.f(x, a)
            y = R.builtin.alloc_tensor(R.shape([4]), R.dtype("float32"), R.prim_value(0))
            Before.f(a, y)
            return y

    @I.ir_module
    class Expected:
        @T.prim_func(private=True)
        def f1(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float16")):
            for i in range(4):
                y[i] = T.Cast("float16", x[i] + T.float32(1))

        @T.prim_func(private=True)
        def f2(x: T.Buffer((4,), "float16"), y: T.Buffer((4,), "float32")):
            for i in range(4):
                y[i] = T.Cast("float32", x[i]) + T.float32(1)

        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            R.func_attr({"relax.force_pure": True})
            a = R.builtin.alloc_tensor(R.shape([4]), R.dtype("float16"), R.prim_value(0))
            Expected.f1(x, a)
            y = R.builtin.alloc_tensor(R.shape([4]), R.dtype("float32"), R.prim_value(0))
            Expected.f2(a, y)
            return y

    assert_pass(UseFloat16(), Before, Expected)


def test_a_weight_beyond_float16_is_one_line() -> None:
    @I.ir_module
    class Network:
        @R.function
        def main(x: R.Tensor((2,), "float32"), w: R.Tensor((2,), "float32")):
            y = R.multiply(x, w)
            return y

    for weight in (65504.0, -7e4):
        weights = {"w": np.array([weight, -np.inf], "float32")}
        bound = relax.transform.BindParams("main", weights)(Network)
        if weight > 0:
            check_weights(bound)
        else:
            with pytest.raises(NotLoweredError, match=r"7e\+04: float16 ends at 65504"):
                check_weights(bound)


def check(specification: Network) -> None:
    """Half precision computes what single precision does, where gates decide alike."""
    model = RandomNetwork(specification).eval()
    rng = np.random.default_rng(specification.seed)
    x = rng.standard_normal((specification.batch, 3, *specification.size)).astype("float32")
    program = torch.export.export(model, (torch.from_numpy(x),))
    annotated = pipeline.annotate(from_exported(program))
    for lowering in ("if", "auto"):
        single, half = (network(annotated, lowering, p) for p in ("float32", "float16"))
        for threshold in (-1e4, 0.0):
            wanted, got = single(x, threshold), half(x, threshold)
            assert [array.dtype for array in got] == [array.dtype for array in wanted]
            if all(np.array_equal(a, b) for a, b in zip(got[1:], wanted[1:], strict=True)):
                scale = max(float(np.abs(wanted[0]).max()), 1e-3)
                assert np.abs(got[0] - wanted[0]).max() <= TOLERANCE * scale, lowering


def network(
    mod: tvm.IRModule, lowering: str, precision: str
) -> Callable[[np.ndarray, float], list[np.ndarray]]:
    """A call of the gated network with one threshold for all gates."""
    soc = replace(quick_host(), lanes=8)
    lowered = pipeline.lower(pipeline.choose(mod, soc, lowering), soc)
    executable, weights = pipeline.build_apart(lowered, soc, precision)
    main = virtual_machine(executable)["main"]
    passed = [tvm.runtime.tensor(array) for array in weights]
    params = lowered["main"].params

    def call(x: np.ndarray, threshold: float) -> list[np.ndarray]:
        thresholds = [np.full(int(p.ty.shape[0]), threshold, "float32") for p in params[1:]]
        outputs = main(*map(tvm.runtime.tensor, [x, *thresholds]), passed)
        return [o.numpy() for o in ([outputs] if hasattr(outputs, "numpy") else outputs)]

    return call


@settings(max_examples=3, **SETTINGS)
@given(networks())
def test_random_networks(specification: Network) -> None:
    check(specification)


@pytest.mark.slow
@settings(max_examples=60, **SETTINGS)
@given(networks())
def test_many_random_networks(specification: Network) -> None:
    check(specification)
