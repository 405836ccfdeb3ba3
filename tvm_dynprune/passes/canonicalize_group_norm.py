# SPDX-License-Identifier: Apache-2.0
"""CanonicalizeGroupNorm: one operation for group and instance normalisation.

Before, as the ONNX importer has it::

    r = R.reshape(x, (N, G, -1))                   # not for an instance norm
    c = R.subtract(r, R.mean(r, axis=[2], keepdims=True))
    d = R.divide(c, R.sqrt(R.add(R.variance(r, axis=[2], keepdims=True), epsilon)))
    y = R.add(R.multiply(R.reshape(d, (N, C, H, W)), gamma), beta)

After::

    y = R.nn.group_norm(x, gamma, beta, num_groups=G, channel_axis=1, axes=[2, 3])

An instance norm is one with as many groups as channels. Leaves what others read on the way.
"""

from collections.abc import Callable

import numpy as np
from tvm.ir import Expr
from tvm.relax import Call, Var, op

from tvm_dynprune.passes.dataflow import channel_vector, constant_of, op_name, shape_of
from tvm_dynprune.passes.rewriter import Rewriter, constant, rewriting_pass


class _CanonicalizeGroupNorm(Rewriter):
    def rewrite(self, var: Var, call: Expr) -> Expr | None:
        match op_name(call):
            case "nn.instance_norm":
                return _of_instance_norm(call)
            case "divide":
                return self._of_statistics(call)
            case "multiply":
                return self._scaled(call, lambda gamma, beta, k: (gamma * k, beta * k))
            case "add":
                return self._scaled(call, lambda gamma, beta, k: (gamma, beta + k))
            case "reshape":
                return self._unchanged(call)
        return None

    def _of_statistics(self, call: Call) -> Expr | None:
        """``(r - mean) / sqrt(variance + epsilon)`` over all but the first two axes."""
        centred, root = (self.value(argument) for argument in call.args)
        if op_name(centred) != "subtract" or op_name(root) != "sqrt":
            return None
        r, (mean, total) = centred.args[0], map(self.value, (centred.args[1], root.args[0]))
        if op_name(mean) != "mean" or op_name(total) != "add":
            return None
        variance, epsilon = self.value(total.args[0]), constant_of(total.args[1])
        if op_name(variance) != "variance" or epsilon is None or epsilon.size != 1:
            return None
        shape = shape_of(r)
        if shape is None or not all(_is_over(of, r, len(shape)) for of in (mean, variance)):
            return None
        if len(shape) == 4:
            return _group_norm(r, shape[1], float(epsilon.item()))
        x = self.value(r).args[0] if op_name(self.value(r)) == "reshape" else r
        sizes = shape_of(x) or ()
        if len(sizes) != 4 or sizes[0] != shape[0] or sizes[1] % shape[1]:
            return None
        return op.reshape(_group_norm(x, shape[1], float(epsilon.item())), shape)

    def _scaled(self, call: Call, change: Callable) -> Expr | None:
        """A norm, or a reshaped one, with a constant for each channel, or for each group."""
        inner, norm = self.value(call.args[0]), self._norm(call.args[0])
        if norm is None or shape_of(call) != shape_of(call.args[0]):
            return None
        channels, groups = shape_of(norm)[1], int(norm.attrs.num_groups)
        if inner.same_as(norm):
            values = channel_vector(call.args[1], channels)
        else:
            values = _by_group(constant_of(call.args[1]), len(shape_of(call)), groups)
            values = None if values is None else np.repeat(values, channels // groups)
        if values is None:
            return None
        gamma, beta = change(*map(constant_of, norm.args[1:]), values)
        epsilon = float(norm.attrs.epsilon)
        changed = _group_norm(norm.args[0], groups, epsilon, gamma, beta)
        return changed if inner.same_as(norm) else op.reshape(changed, shape_of(call))

    def _norm(self, expr: Expr) -> Call | None:
        """The normalisation that is all that a variable is, and that only one reads."""
        value = self.value(expr)
        if not self.is_only_use(expr):
            return None
        if op_name(value) == "reshape":
            return self._norm(value.args[0])
        if op_name(value) != "nn.group_norm":
            return None
        is_constant = all(constant_of(argument) is not None for argument in value.args[1:])
        return value if is_constant else None

    def _unchanged(self, call: Call) -> Expr | None:
        """What a norm's reshape back to its own shape is of."""
        before = self.value(call.args[0])
        if op_name(before) != "reshape" or self._norm(before.args[0]) is None:
            return None
        return before.args[0] if shape_of(before.args[0]) == shape_of(call) else None


def _of_instance_norm(call: Call) -> Expr | None:
    axes, shape = [int(axis) for axis in call.attrs.axes], shape_of(call.args[0])
    vectors = [constant_of(argument) for argument in call.args[1:]]
    if shape is None or len(shape) != 4 or int(call.attrs.channel_axis) != 1:
        return None
    if axes not in ([2, 3], [0, 2, 3]) or any(vector is None for vector in vectors):
        return None
    return _group_norm(call.args[0], shape[1], float(call.attrs.epsilon), *vectors)


def _group_norm(
    x: Expr,
    groups: int,
    epsilon: float,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
) -> Expr:
    channels = shape_of(x)[1]
    gamma = np.ones(channels) if gamma is None else gamma
    beta = np.zeros(channels) if beta is None else beta
    return op.nn.group_norm(
        x,
        constant(gamma),
        constant(beta),
        num_groups=groups,
        channel_axis=1,
        axes=[2, 3],
        epsilon=epsilon,
    )


def _is_over(reduced: Call, r: Expr, rank: int) -> bool:
    """Whether a mean or variance is that of `r` over all axes but the first two."""
    axes = reduced.attrs.axis
    return (
        reduced.args[0].same_as(r)
        and bool(reduced.attrs.keepdims)
        and axes is not None
        and sorted(int(axis) % rank for axis in axes) == list(range(2, rank))
    )


def _by_group(values: np.ndarray | None, rank: int, groups: int) -> np.ndarray | None:
    """(G,) numbers of a constant that is broadcast to (N, G, ...), if it is one for each group."""
    if values is None or values.ndim > rank or values.size not in (1, groups):
        return None
    shape = (1,) * (rank - values.ndim) + values.shape
    if values.size > 1 and shape[1] != groups:
        return None
    return np.broadcast_to(values.reshape(-1), (groups,))


CanonicalizeGroupNorm = rewriting_pass("CanonicalizeGroupNorm", _CanonicalizeGroupNorm)
