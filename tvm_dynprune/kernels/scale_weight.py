# SPDX-License-Identifier: Apache-2.0
"""Multiply a 1x1 convolution's weights by a number for each input channel.

Where the input has more pixels than the result has channels, that is less than to scale the input,
as squeeze and excitation does (arXiv 1709.01507).
"""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.direct_conv2d import direct_weight_shape
from tvm_dynprune.kernels.open_list import list_arguments
from tvm_dynprune.kernels.reduction import Step


def scale_weight(spec: Conv2d) -> tirx.PrimFunc:
    """Build the kernel for a direct convolution of one sample.

    Its parameters: weight, packed; scale (1, C_in, 1, 1); [list_in, count_in], as the spec says;
    the result. Weights of closed input channels stay unwritten.
    """
    x, y, reduction = spec.x, spec.y, spec.reduction
    shape = direct_weight_shape(spec)
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            weight = T.arg("weight", T.buffer(shape, "float32"))
            scale = T.arg("scale", T.buffer((1, x.channels, 1, 1), "float32"))
            lists = (None, None)
            if spec.open_in:
                lists = list_arguments("in", 1, reduction.list_length)
            scaled = T.arg("scaled", T.buffer(shape, "float32"))
            with T.parallel(0, y.blocks) as block:
                with reduction.loops(0, *lists, None) as step:
                    factor = scale[0, step.block * x.lanes + step.lane, 0, 0]
                    with T.vectorized(0, y.lanes) as v:
                        at = _place(spec, block, step, v)
                        T.buffer_store(scaled, weight[at] * factor, list(at))
    return builder.get()


def _place(spec: Conv2d, block, step: Step, lane) -> tuple:
    """Where a weight stands in what `pack_direct_weight` returns."""
    if spec.visit == "gather":
        return (step.block * spec.x.lanes + step.lane, block, 0, 0, lane)
    return (block, *step.weight, lane)
