# SPDX-License-Identifier: Apache-2.0
"""CanonicalizePooling: write every global average pooling in one form, adaptive ones as plain ones.

Before::

    y = R.mean(x, axis=[2, 3], keepdims=False)     # or adaptive_avg_pool2d(x, 1), or
                                                   # avg_pool2d over the whole plane
After::

    lv = R.mean(x, axis=[2, 3], keepdims=True)
    y = R.reshape(lv, (N, C))                      # only where the axes were dropped

An adaptive average pooling whose windows are equal becomes one with this window, or none at all.
"""

from tvm.ir import Expr
from tvm.relax import Call, Var, op

from tvm_dynprune.passes.dataflow import op_name, shape_of
from tvm_dynprune.passes.rewriter import Rewriter, rewriting_pass


class _CanonicalizePooling(Rewriter):
    def rewrite(self, var: Var, call: Expr) -> Expr | None:
        if not _is_global_average(call):
            return _plain(call) if op_name(call) == "nn.adaptive_avg_pool2d" else None
        mean = op.mean(call.args[0], axis=[2, 3], keepdims=True)
        keeps = len(shape_of(call) or ()) == 4
        if keeps and op_name(call) == "mean" and [int(a) for a in call.attrs.axis] == [2, 3]:
            return None
        return mean if keeps else op.reshape(mean, shape_of(call))


def _plain(call: Call) -> Expr | None:
    """An adaptive average pooling as one with a fixed window; None if its windows differ."""
    before, after = shape_of(call.args[0]), shape_of(call)
    if before is None or call.attrs.layout != "NCHW" or before == after:
        return call.args[0] if before == after else None
    sides = [divmod(size, result) for size, result in zip(before[2:], after[2:], strict=True)]
    if any(rest for _, rest in sides):
        return None
    window = tuple(side for side, _ in sides)
    return op.nn.avg_pool2d(call.args[0], window, window)


def _is_global_average(call: Call) -> bool:
    shape = shape_of(call.args[0]) if call.args else None
    if shape is None or len(shape) != 4:
        return False
    name = op_name(call)
    if name == "mean":
        return call.attrs.axis is not None and sorted(int(a) % 4 for a in call.attrs.axis) == [2, 3]
    if name == "nn.adaptive_avg_pool2d":
        return shape_of(call)[2:] == (1, 1)
    return (
        name == "nn.avg_pool2d"
        and tuple(int(size) for size in call.attrs.pool_size) == shape[2:]
        and not any(int(pad) for pad in call.attrs.padding)
        and shape_of(call)[2:] == (1, 1)
    )


CanonicalizePooling = rewriting_pass("CanonicalizePooling", _CanonicalizePooling)
