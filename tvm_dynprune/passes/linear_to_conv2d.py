# SPDX-License-Identifier: Apache-2.0
"""LinearToConv2d: make a linear layer a convolution over the whole plane.

Before::

    y = R.reshape(x, (N, C * H * W))               # x (N, C, H, W)
    z = R.matmul(y, w)                             # w (C * H * W, O), constant

After::

    lv = R.nn.conv2d(x, w.T.reshape(O, C, H, W))   # (N, O, 1, 1)
    z = R.reshape(lv, (N, O))

So a linear layer skips closed channels as every convolution does. The elementwise operations that
follow it move before the reshape, where they can become part of the convolution.
Leaves a matmul of other ranks, or with a weight that is no constant.
"""

from math import prod

import numpy as np
from tvm.ir import Expr
from tvm.relax import Call, Var, op

from tvm_dynprune.passes.dataflow import constant_of, op_name, shape_of
from tvm_dynprune.passes.rewriter import BINARY, UNARY, Rewriter, constant, rewriting_pass


class _LinearToConv2d(Rewriter):
    def rewrite(self, var: Var, call: Expr) -> Expr | None:
        name = op_name(call)
        if name == "matmul":
            return self._convolution(var, call)
        if name == "reshape":
            return self._merged(call)
        if name in UNARY:
            plane = self._plane(call.args[0])
            if plane is not None:
                arguments = [plane, *call.args[1:]]
                return op.reshape(
                    Call(call.op, arguments, call.attrs, call.ty_args), shape_of(call)
                )
        if name in BINARY:
            return self._binary(call)
        return None

    def _convolution(self, var: Var, call: Call) -> Expr | None:
        weight, shape = constant_of(call.args[1]), shape_of(call.args[0])
        if weight is None or weight.ndim != 2 or shape is None or len(shape) != 2:
            return None
        plane = self._flattened(call.args[0])
        if plane is None:
            plane = op.reshape(self._unshaped(call.args[0]), (*shape, 1, 1))
            kernel = (weight.shape[1], weight.shape[0], 1, 1)
        else:
            kernel = (weight.shape[1], *shape_of(plane)[1:])
        packed = constant(np.ascontiguousarray(weight.T).reshape(kernel))
        convolution = self._builder.normalize(
            op.nn.conv2d(self._flatten(plane, inner=True), packed)
        )
        return op.reshape(self._fresh(var.name, convolution), shape_of(call))

    def _flattened(self, expr: Expr) -> Expr | None:
        """The (N, C, H, W) tensor of which `expr` is the reshape to (N, C * H * W)."""
        value = self.value(expr)
        if op_name(value) not in ("reshape", "flatten"):
            return None
        shape, flat = shape_of(value.args[0]), shape_of(expr)
        is_plane = shape is not None and len(shape) == 4 and flat == (shape[0], prod(shape[1:]))
        return value.args[0] if is_plane else None

    def _plane(self, expr: Expr) -> Expr | None:
        """The (N, C, 1, 1) tensor of which `expr` is the reshape to (N, C)."""
        plane = self._flattened(expr)
        return plane if plane is not None and shape_of(plane)[2:] == (1, 1) else None

    def _binary(self, call: Call) -> Expr | None:
        """An elementwise operation of a linear layer's result and a constant (O,)."""
        left, right = call.args
        if constant_of(left) is not None and op_name(call) in ("add", "multiply"):
            left, right = right, left
        plane, values = self._plane(left), constant_of(right)
        if plane is None or values is None or values.size not in (1, shape_of(plane)[1]):
            return None
        if values.size > 1 and values.shape[-1] != values.size:  # one per sample
            return None
        shaped = constant(values.reshape(1, -1, 1, 1))
        return op.reshape(Call(call.op, [plane, shaped], call.attrs, call.ty_args), shape_of(call))

    def _merged(self, call: Call) -> Expr | None:
        """Two reshapes in a row are one, and one to the same shape is none."""
        source, target = self._unshaped(call.args[0]), shape_of(call)
        if shape_of(source) == target:
            return source
        return None if source.same_as(call.args[0]) else op.reshape(source, target)

    def _unshaped(self, expr: Expr) -> Expr:
        """What `expr` was before any reshape."""
        while op_name(self.value(expr)) == "reshape":
            expr = self.value(expr).args[0]
        return expr


LinearToConv2d = rewriting_pass("LinearToConv2d", _LinearToConv2d)
