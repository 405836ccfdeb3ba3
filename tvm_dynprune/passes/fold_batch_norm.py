# SPDX-License-Identifier: Apache-2.0
"""FoldBatchNorm: fold per-channel factors and offsets into the convolution before them.

Before::

    y = R.nn.conv2d(x, w)                  # w constant
    z = R.nn.batch_norm(y, gamma, beta, mean, variance)[0]

After::

    y = R.nn.conv2d(x, w * a)              # a = gamma / sqrt(variance + epsilon)
    z = R.add(y, b)                        # b = beta - mean * a, (1, C, 1, 1)

Additions, subtractions, multiplications and divisions by per-channel constants fold alike. A batch
norm with no convolution to fold into becomes a multiplication and an addition.
Leaves a convolution whose result has another user.
"""

import numpy as np
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Call, Var, op

from tvm_dynprune.passes.dataflow import channel_vector, constant_of, op_name, shape_of
from tvm_dynprune.passes.rewriter import Rewriter, constant, rewriting_pass

_OUTPUT_AXIS = {"nn.conv2d": 0, "nn.conv2d_transpose": 1}  # of the weights


class _FoldBatchNorm(Rewriter):
    def rewrite(self, var: Var, call: Expr) -> Expr | None:
        affine = self._affine(call)
        if affine is None:
            return None
        x, factor, offset = affine
        convolution, bias = self._convolution(x)
        if convolution is not None:
            return self._folded(convolution, factor, bias * factor + offset)
        if op_name(call) in ("batch_norm", "nn.batch_norm"):
            scaled = op.multiply(x, _per_channel(factor))
            return op.add(scaled, _per_channel(offset))
        return None

    def run(self) -> relax.Function:
        # A batch norm is read through item 0 of its result; make that item the rewritten value.
        for binding in self.flow.bindings:
            value = binding.value
            if isinstance(value, relax.TupleGetItem) and value.index == 0:
                source = self.flow.value(value.tuple_value)
                if op_name(source) == "nn.batch_norm":
                    self._norms[binding.var] = source
        self.flow.bindings = [
            relax.VarBinding(b.var, self._norms.get(b.var, b.value)) for b in self.flow.bindings
        ]
        return super().run()

    def __init__(self, func: relax.Function) -> None:
        super().__init__(func)
        self._norms: dict[Var, Expr] = {}

    def _affine(self, call: Call) -> tuple[Expr, np.ndarray, np.ndarray] | None:
        """(x, a, b) such that ``call`` is x * a + b per channel."""
        name = op_name(call)
        if name == "nn.batch_norm":
            return _batch_norm_affine(call)
        if name not in ("add", "subtract", "multiply", "divide"):
            return None
        left, right = call.args
        if name in ("add", "multiply") and constant_of(left) is not None:
            left, right = right, left
        shape = shape_of(left)
        if shape is None or len(shape) != 4 or shape_of(call) != shape:
            return None
        values = channel_vector(right, shape[1])
        if values is None:
            return None
        one, zero = np.ones_like(values), np.zeros_like(values)
        return {
            "add": lambda: (left, one, values),
            "subtract": lambda: (left, one, -values),
            "multiply": lambda: (left, values, zero),
            "divide": lambda: (left, one / values, zero),
        }[name]()

    def _convolution(self, x: Expr) -> tuple[Call | None, np.ndarray]:
        """The convolution that `x` is, and its bias, if both may be changed."""
        none = (None, np.zeros(1, "float32"))
        value, bias = self.value(x), None
        if not self.is_only_use(x):
            return none
        if op_name(value) == "add":
            bias = channel_vector(value.args[1], shape_of(value)[1])
            if bias is None or not self.is_only_use(value.args[0]):
                return none
            value = self.value(value.args[0])
        if op_name(value) not in _OUTPUT_AXIS or constant_of(value.args[1]) is None:
            return none
        if op_name(value) == "nn.conv2d_transpose" and int(value.attrs.groups) > 1:
            return none
        channels = shape_of(value)[1]
        return value, np.zeros(channels, "float32") if bias is None else bias

    def _folded(self, convolution: Call, factor: np.ndarray, offset: np.ndarray) -> Expr:
        weight = constant_of(convolution.args[1])
        shape = [1, 1, 1, 1]
        shape[_OUTPUT_AXIS[op_name(convolution)]] = -1
        scaled = constant(weight * np.broadcast_to(factor, shape_of(convolution)[1]).reshape(shape))
        arguments = [convolution.args[0], scaled]
        call = Call(convolution.op, arguments, convolution.attrs, convolution.ty_args)
        named = self._named(call, convolution)
        return op.add(named, _per_channel(offset)) if offset.any() else named

    def _named(self, call: Call, old: Call) -> Expr:
        """Bind the new convolution to a variable of the old one's name: the layer's."""
        name = next((v.name for v, value in self.values.items() if value.same_as(old)), "lv")
        return self._fresh(name, self._builder.normalize(call))


def _batch_norm_affine(call: Call) -> tuple[Expr, np.ndarray, np.ndarray] | None:
    values = [constant_of(argument) for argument in call.args[1:5]]
    if any(value is None for value in values) or int(call.attrs.axis) != 1:
        return None
    gamma, beta, mean, variance = (value.astype("float64") for value in values)
    factor = (gamma if call.attrs.scale else 1.0) / np.sqrt(variance + float(call.attrs.epsilon))
    offset = (beta if call.attrs.center else 0.0) - mean * factor
    return call.args[0], factor.astype("float32"), offset.astype("float32")


def _per_channel(values: np.ndarray) -> Expr:
    return constant(values.reshape(1, -1, 1, 1))


FoldBatchNorm = rewriting_pass("FoldBatchNorm", _FoldBatchNorm)
