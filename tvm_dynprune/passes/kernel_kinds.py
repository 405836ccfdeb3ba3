# SPDX-License-Identifier: Apache-2.0
"""Which kind of kernel of ours computes an operation, for `FuseKernels`."""

from tvm.ir import Expr
from tvm.relax import Call

from tvm_dynprune.kernels.resize2d import COORDINATES, METHODS
from tvm_dynprune.passes.composite import CONVOLUTIONS
from tvm_dynprune.passes.dataflow import constant_of, op_name, shape_of

WITH_WEIGHT = (*CONVOLUTIONS, "transposed_conv2d", "affine")
TAKES_STEPS = (*WITH_WEIGHT, "group_norm")  # kinds with an epilogue
_PLANES = {
    "nn.max_pool2d": "max_pool2d",
    "nn.avg_pool2d": "avg_pool2d",
    "image.resize2d": "resize2d",
    "nn.layer_norm": "layer_norm",
    "nn.group_norm": "group_norm",
    "mean": "global_average",
}


def kernel_kind(call: Expr) -> str | None:
    """The kind of the composite that one operation becomes, with or without more; None for none."""
    if op_name(call) in _PLANES and _is_by_plane(call):
        return _PLANES[op_name(call)]
    if op_name(call) == "nn.conv2d_transpose":
        return "transposed_conv2d" if _is_plain_transposed(call) else None
    if op_name(call) != "nn.conv2d" or constant_of(call.args[1]) is None:
        return None
    x, weight = shape_of(call.args[0]), shape_of(call.args[1])
    if x is None or str(call.ty.dtype) != "float32" or call.attrs.data_layout != "NCHW":
        return None
    groups = int(call.attrs.groups)
    if groups == 1:
        return "conv2d"
    return "depthwise_conv2d" if groups == x[1] == weight[0] else "grouped_conv2d"


def _is_plain_transposed(call: Call) -> bool:
    attrs, weight = call.attrs, shape_of(call.args[1])
    if constant_of(call.args[1]) is None or shape_of(call) is None:
        return False
    if attrs.data_layout != "NCHW" or attrs.kernel_layout != "IOHW" or int(attrs.groups) > 1:
        return False
    if str(call.ty.dtype) != "float32" or any(int(step) > 1 for step in attrs.dilation):
        return False
    # Else some pixels are no sums at all.
    return all(int(s) <= side for s, side in zip(attrs.strides, weight[2:], strict=True))


def _is_by_plane(call: Call) -> bool:
    shape = shape_of(call.args[0])
    if shape is None or len(shape) != 4 or str(call.ty.dtype) != "float32":
        return False
    if op_name(call) == "mean":
        axes = call.attrs.axis
        return bool(call.attrs.keepdims) and axes is not None and [int(a) for a in axes] == [2, 3]
    if op_name(call) in ("nn.layer_norm", "nn.group_norm"):
        is_constant = all(constant_of(values) is not None for values in call.args[1:])
        is_affine = bool(call.attrs.center) and bool(call.attrs.scale)
        wanted = [1] if op_name(call) == "nn.layer_norm" else [2, 3]
        return is_constant and is_affine and [int(axis) for axis in call.attrs.axes] == wanted
    if op_name(call) == "image.resize2d":
        known = call.attrs.coordinate_transformation_mode in COORDINATES
        return known and call.attrs.layout == "NCHW" and call.attrs.method in METHODS
    return call.attrs.layout == "NCHW" and not _averages_past_padding(call)


def _averages_past_padding(call: Call) -> bool:
    """Whether a window of an average pooling ends outside the padded plane (``ceil_mode``)."""
    if op_name(call) != "nn.avg_pool2d":
        return False
    pads = [int(pad) for pad in call.attrs.padding]
    for axis in (0, 1):
        last = (shape_of(call)[2 + axis] - 1) * int(call.attrs.strides[axis])
        end = last + int(call.attrs.pool_size[axis])
        if end > shape_of(call.args[0])[2 + axis] + pads[axis] + pads[2 + axis]:
            return True
    return False
