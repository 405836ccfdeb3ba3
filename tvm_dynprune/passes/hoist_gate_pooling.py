# SPDX-License-Identifier: Apache-2.0
"""HoistGatePooling: pool before a gate's 1x1 convolution instead of after it.

Before::

    y = R.nn.conv2d(x, w)                          # w (G, C, 1, 1), stride 1
    z = R.add(y, b)                                # or no bias
    p = R.mean(z, axis=[2, 3], keepdims=True)

After::

    lv = R.mean(x, axis=[2, 3], keepdims=True)
    lv1 = R.nn.conv2d(lv, w)
    p = R.add(lv1, b)

Both are linear, so they commute; the convolution then costs C * G instead of C * G * H * W. Where
it pads x, its result has more pixels to divide by, and the weights become smaller by as much.
Needs FoldBatchNorm and CanonicalizePooling before it.
Leaves larger kernels, strides, and a convolution whose result has another user.
"""

from math import prod

import numpy as np
from tvm.ir import Expr
from tvm.relax import Call, Var, op

from tvm_dynprune.passes.dataflow import channel_vector, constant_of, op_name, shape_of
from tvm_dynprune.passes.rewriter import Rewriter, constant, rewriting_pass


class _HoistGatePooling(Rewriter):
    def rewrite(self, var: Var, call: Expr) -> Expr | None:
        if op_name(call) != "mean" or len(shape_of(call) or ()) != 4:
            return None
        if [int(axis) for axis in call.attrs.axis] != [2, 3]:
            return None
        source, bias = call.args[0], None
        if not self.is_only_use(source):
            return None
        value = self.value(source)
        if (
            op_name(value) == "add"
            and channel_vector(value.args[1], shape_of(value)[1]) is not None
        ):
            source, bias = value.args
            if not self.is_only_use(source):
                return None
            value = self.value(source)
        if op_name(value) != "nn.conv2d" or not _is_pointwise(value):
            return None
        pooled = op.mean(value.args[0], axis=[2, 3], keepdims=True)
        logits = op.nn.conv2d(pooled, _weight(value), groups=int(value.attrs.groups))
        return logits if bias is None else op.add(logits, bias)


def _is_pointwise(call: Call) -> bool:
    kernel = (shape_of(call.args[1]) or ())[2:]
    strides = [int(stride) for stride in call.attrs.strides]
    pads = any(int(pad) for pad in call.attrs.padding)
    is_known = not pads or constant_of(call.args[1]) is not None
    return kernel == (1, 1) and strides == [1, 1] and is_known and call.attrs.data_layout == "NCHW"


def _weight(call: Call) -> Expr:
    """The weights for the mean of what the convolution reads, before it is padded."""
    inside, padded = prod(shape_of(call.args[0])[2:]), prod(shape_of(call)[2:])
    if inside == padded:
        return call.args[1]
    return constant(np.multiply(constant_of(call.args[1]), np.float32(inside / padded)))


HoistGatePooling = rewriting_pass("HoistGatePooling", _HoistGatePooling)
