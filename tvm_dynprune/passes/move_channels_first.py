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

Elementwise operations in between, of two such tensors or with constants, come along, also where the
pixels are rows (N * H * W, C) for a while.
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
        elif name == "reshape" and _rows(plane) == shape_of(call.args[0]):
            batch, channels, height, width = shape_of(plane)
            result = plane if shape_of(call) == (batch, height, width, channels) else None
        return None if result is None else self._last(result, len(shape_of(call)))

    def _last(self, plane: Expr, rank: int) -> Expr:
        """A tensor with its channels last: (N, H, W, C), or its pixels as rows (N * H * W, C)."""
        last = op.permute_dims(plane, _TO_LAST)
        return last if rank == 4 else op.reshape(last, _rows(self._builder.normalize(plane)))

    def _plane(self, expr: Expr) -> Expr | None:
        """The (N, C, H, W) tensor of which `expr` is what `_last` returns."""
        value, shape = self.value(expr), shape_of(expr)
        if op_name(value) == "reshape" and len(shape or ()) == 2:
            plane = self._plane(value.args[0])
            return plane if plane is not None and _rows(plane) == shape else None
        if op_name(value) != "permute_dims" or _axes(value) != _TO_LAST:
            return None
        return value.args[0]

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


def _rows(plane: Expr) -> tuple[int, int]:
    batch, channels, height, width = shape_of(plane)
    return batch * height * width, channels


def _layer_norm(call: Call, plane: Expr) -> Expr | None:
    last = len(shape_of(call)) - 1
    if [int(axis) for axis in call.attrs.axes] not in ([-1], [last]):
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
