# SPDX-License-Identifier: Apache-2.0
"""What is left of a convolution all of whose output channels are closed."""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.conv2d_builder import Conv2dBuilder


def conv2d_closed(spec: Conv2d) -> tirx.PrimFunc:
    """Build the kernel of what `y` holds where everything is closed.

    Its parameters: residual or else open, [factors (factors, blocks * lanes)], y. It does not read
    open (N, C) bool: without an argument, TVM would compute a small y once for all calls, and
    branches write into it.
    """
    y = spec.y
    with IRBuilder() as ir:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            builder = Conv2dBuilder(spec)
            if spec.residual is not None:
                builder.residual = spec.residual.argument("residual")
            else:
                T.arg("open", T.buffer((y.batch, y.channels), "bool"))
            builder.declare_factors()
            builder.y = y.part_of(y.argument("y"))
            with T.serial(0, y.batch) as n, T.parallel(0, y.blocks) as block:
                builder.fill_block(n, block)
    return ir.get()
