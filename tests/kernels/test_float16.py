# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from tests.kernels.util import compiled
from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.conv2d_window import Conv2dWindow, conv2d_window
from tvm_dynprune.kernels.direct_conv2d import direct_conv2d, pack_direct_weight
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.float16 import in_float16
from tvm_dynprune.kernels.global_average import GlobalAverage, global_average
from tvm_dynprune.kernels.window import Window

LANES = 8


def test_arithmetic_is_in_float16() -> None:
    @T.prim_func
    def kernel(
        x: T.Buffer((4, 8), "float32"), w: T.Buffer((4, 8), "float32"), y: T.Buffer((8,), "float32")
    ):
        acc = T.alloc_buffer((8,), "float32")
        for v in T.vectorized(8):
            acc[v] = T.float32(0)
        for i in range(4):
            for v in T.vectorized(8):
                acc[v] = acc[v] + x[i, v] * w[i, v]
        for v in T.vectorized(8):
            y[v] = T.max(acc[v] - T.float32(0.5), T.float32(-3.4e38))

    text = in_float16(kernel, {0, 1, 2}).script()
    assert "float32" not in text
    assert "Cast" not in text
    assert "T.float16(-65504.0)" in text


def test_all_else_stays_in_float32() -> None:
    @T.prim_func
    def kernel(x: T.Buffer((64,), "float32"), y: T.Buffer((2,), "float32")):
        total = T.alloc_buffer((1,), "float32")
        total[0] = T.float32(0)
        for i in range(64):
            total[0] = total[0] + x[i]
        y[0] = T.exp(total[0])
        y[1] = x[0] / T.float32(3)

    script = in_float16(kernel, {0}).script()
    assert 'x: T.Buffer((64,), "float16")' in script
    assert 'y: T.Buffer((2,), "float32")' in script
    assert 'total + T.Cast("float32", x[i])' in script
    assert 'T.Cast("float32", x[0]) / T.float32(3.0)' in script
    half = in_float16(kernel, {0, 1}).script()
    assert 'y[0] = T.Cast("float16", T.exp(total))' in half


def test_allocations_may_stay_in_float32() -> None:
    @T.prim_func
    def kernel(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
        small = T.alloc_buffer((8,), "float32")
        for i in range(8):
            small[i] = x[i] * T.float32(1e-9)
        for i in range(8):
            y[i] = T.float32(1) / small[i]

    script = in_float16(kernel, {0, 1}, allocations=False).script()
    assert 'small[i] = T.Cast("float32", x[i]) * T.float32' in script
    assert 'y[i] = T.Cast("float16", T.float32(1.0) / small[i])' in script


def test_long_sums_are_exact() -> None:
    spec = GlobalAverage(FeatureMap(1, LANES, 80, 80, LANES))
    x, y = np.ones(spec.x.shape, "float16"), np.zeros(spec.y.shape, "float16")
    compiled(in_float16(global_average(spec), {0, 1}))(x, y)
    np.testing.assert_array_equal(y, 1)  # float16 adds 1 to no more than 2048


@pytest.mark.parametrize("channels", [16, 96])
def test_convolution(channels: int) -> None:
    x_map = FeatureMap(1, channels, 6, 7, LANES, halo=1)
    spec = Conv2d(x_map, FeatureMap(1, 16, 6, 7, LANES), (3, 3), (1, 1), (1, 1), (1, 1))
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, channels, 3, 3)).astype("float32")
    x = rng.standard_normal(x_map.shape).astype("float32")
    arrays = [x, pack_direct_weight(weight, spec)]
    single, half = np.zeros(spec.y.shape, "float32"), np.zeros(spec.y.shape, "float16")
    kernel = direct_conv2d(spec)
    compiled(kernel)(*arrays, single)
    compiled(in_float16(kernel, {0, 1, 2}))(*(a.astype("float16") for a in arrays), half)
    error = np.abs(half.astype("float32") - single).max()
    assert 0 < error <= 5e-3 * np.abs(single).max()


def test_what_only_a_kernel_reads_is_in_float16() -> None:
    x, between = FeatureMap(1, 16, 9, 7, LANES), FeatureMap(1, 16, 9, 7, LANES)
    conv2d = Conv2d(x, between, (1, 1), (1, 1), (0, 0), (1, 1))
    pooling = Window("max", between, FeatureMap(1, 16, 4, 3, LANES), (3, 3), (2, 2), (0, 0))
    kernel = in_float16(conv2d_window(Conv2dWindow(conv2d, pooling)), {0, 1, 2})
    assert "float32" not in kernel.script()


def test_what_it_is_called_with_has_its_types() -> None:
    kernel = in_float16(global_average(GlobalAverage(FeatureMap(1, 8, 2, 2, LANES))), {0})
    assert [re.sub(r"\W", "", str(p.dtype)) for p in kernel.params] == ["float16", "float32"]
    assert isinstance(kernel, tvm.tirx.PrimFunc)
