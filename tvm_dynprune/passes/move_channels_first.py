# SPDX-License-Identifier: Apache-2.0
"""MoveChannelsFirst: compute on (N, C, H, W) what a network computes with channels last.

Before::

    y = R.permute_dims(x, (0, 2, 3, 1))            # x (N, C, H, W)
    z = R.nn.layer_norm(y, gamma, beta, axes=[-1])
    u = R.matmul(z, w)                             # w (C, O), constant
    v = R.permute_dims(u, (0, 3, 1, 2))

After::

    z = R.nn.layer_norm(x, gamma, beta, axes=[1])
    v = R.nn.conv2d(z, w.T.reshape(O, C, 1, 1))

Elementwise operations in between, of two such tensors or with constants, come along.
Leaves what needs the channels last for anything else.
"""

import numpy as np
from tvm.ir import Expr
from tvm.relax import Call, Var, op

from tvm_dynprune.passes.dataflow import constant_of, op_name, shape_of
from tvm_dynprune.passes.rewriter import BINARY, UNARY, Rewriter, constant, rewriting_pass

_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class _MoveChannelsFirst(Rewriter):
    def rewrite(self, var: Var, call: Expr) -> Expr | None:
        name = op_name(call)
        plane = self._plane(call.args[0]) if len(call.args) else None
        if name == "permute_dims":
            return self._permuted(call, plane)
        result = None
        if name in BINARY:
            result = self._binary(call)
        elif plane is None:
            return None
        elif name in UNARY:
            result = Call(call.op, [plane, *call.args[1:]], call.attrs, call.ty_args)
        elif name == "matmul":
            result = self._convolution(var, call, plane)
        elif name == "nn.layer_norm":
            result = _layer_norm(call, plane)
        return None if result is None else op.permute_dims(result, _TO_LAST)

    def _plane(self, expr: Expr) -> Expr | None:
        """The (N, C, H, W) tensor of which `expr` is the permutation to (N, H, W, C)."""
        value = self.value(expr)
        return (
            value.args[0] if op_name(value) == "permute_dims" and _axes(value) == _TO_LAST else None
        )

    def _permuted(self, call: Call, plane: Expr | None) -> Expr | None:
        if _axes(call) == _TO_FIRST:
            return plane
        value = self.value(call.args[0])
        if _axes(call) == _TO_LAST and op_name(value) == "permute_dims":
            return value.args[0] if _axes(value) == _TO_FIRST else None
        return None

    def _convolution(self, var: Var, call: Call, plane: Expr) -> Expr | None:
        weight = constant_of(call.args[1])
        if weight is None or weight.ndim != 2:
            return None
        kernel = constant(np.ascontiguousarray(weight.T)[:, :, None, None])
        convolution = self._builder.normalize(op.nn.conv2d(plane, kernel))
        return self._fresh(var.name, convolution)

    def _binary(self, call: Call) -> Expr | None:
        """Two such tensors of one shape, or one and a constant for each channel."""
        planes = [self._plane(argument) for argument in call.args]
        first = next((plane for plane in planes if plane is not None), None)
        if first is None or shape_of(call) != shape_of(call.args[planes.index(first)]):
            return None
        sides = []
        for argument, plane in zip(call.args, planes, strict=True):
            values = constant_of(argument)
            if plane is not None and shape_of(plane) == shape_of(first):
                sides.append(plane)
            elif values is not None and values.size in (1, (values.shape or (1,))[-1]):
                sides.append(constant(values.reshape(1, -1, 1, 1)))
            else:
                return None
        return Call(call.op, sides, call.attrs, call.ty_args)


def _axes(call: Call) -> list[int] | None:
    return None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes]


def _layer_norm(call: Call, plane: Expr) -> Expr | None:
    if [int(axis) for axis in call.attrs.axes] not in ([-1], [3]):
        return None
    attrs = call.attrs
    return op.nn.layer_norm(
        plane,
        *call.args[1:],
        axes=[1],
        epsilon=float(attrs.epsilon),
        center=bool(attrs.center),
        scale=bool(attrs.scale),
    )


MoveChannelsFirst = rewriting_pass("MoveChannelsFirst", _MoveChannelsFirst)
