# SPDX-License-Identifier: Apache-2.0
import pytest
import tvm
from tvm import tirx
from tvm_ffi import structural_equal

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.direct_conv2d import direct_conv2d
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.tir_pipeline import TIR_PIPELINE
from tvm_dynprune.kernels.window import Window, window
from tvm_dynprune.kernels.winograd import Winograd
from tvm_dynprune.kernels.winograd_conv2d import winograd_conv2d
from tvm_dynprune.soc import load_soc

LEFT_OUT = ["s_tir.CompactBufferAllocation", "s_tir.HoistIfThenElse"]
PLANE = FeatureMap(2, 40, 9, 7, 8, halo=1)
SIDES = ((3, 3), (1, 1), (1, 1))
CONV = Conv2d(PLANE, PLANE, *SIDES, (1, 1), open_in=True, unit_in=8, visit="blocks", registers=16)
KERNELS = {
    "direct": lambda: direct_conv2d(CONV),
    "winograd": lambda: winograd_conv2d(Winograd(CONV, 4)),
    "depthwise": lambda: window(Window("depthwise", PLANE, PLANE, *SIDES)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_it_is_the_default_pipeline_without_two_passes(name):
    target = load_soc("host").tvm_target()
    kernel = KERNELS[name]().with_attr("global_symbol", "main")
    bound = tirx.transform.BindTarget(tvm.target.Target(target, host=target))
    mod = bound(tvm.IRModule({"main": kernel}))
    ours, *_ = tirx.get_tir_pipeline(TIR_PIPELINE)
    default, *_ = tirx.get_tir_pipeline("default")
    with tvm.transform.PassContext(disabled_pass=LEFT_OUT):
        assert structural_equal(ours(mod), default(mod), map_free_vars=True)
    assert not structural_equal(ours(mod), mod)
