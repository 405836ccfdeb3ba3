# SPDX-License-Identifier: Apache-2.0
"""Accumulators stay in registers: no kernel asks TVM's workspace for them."""

import pytest
import tvm

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.direct_conv2d import direct_conv2d
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.tir_pipeline import TIR_PIPELINE
from tvm_dynprune.kernels.window import Window, window
from tvm_dynprune.kernels.winograd import Winograd
from tvm_dynprune.kernels.winograd_input import winograd_input

LANES = 16  # 16 vectors are 1 KiB, more than TVM puts onto the stack at once
PLANE = FeatureMap(1, 64, 28, 28, LANES, halo=1)
SIDES = ((3, 3), (1, 1), (1, 1))
CONV = Conv2d(PLANE, PLANE, *SIDES, (1, 1), open_in=True, unit_in=LANES, visit="blocks")
KERNELS = {
    "direct": lambda: direct_conv2d(CONV),
    "depthwise": lambda: window(Window("depthwise", PLANE, PLANE, *SIDES)),
    "winograd input": lambda: winograd_input(Winograd(CONV, 4)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_no_workspace(name: str):
    target = tvm.target.Target({"kind": "llvm", "mcpu": "skylake-avx512"})
    kernel = KERNELS[name]().with_attr("global_symbol", "main")
    module = tvm.IRModule({"main": kernel})
    library = tvm.compile(module, target=target, tir_pipeline=TIR_PIPELINE)
    assert "AllocWorkspace" not in library.mod.inspect_source("ll")
