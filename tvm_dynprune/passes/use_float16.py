# SPDX-License-Identifier: Apache-2.0
"""UseFloat16: keep and compute in half precision what lies between a network's inputs and outputs.

Before::

    a = R.builtin.alloc_tensor((1, 4, 8, 8, 8), "float32")
    conv2d(x, <float32 constant>, a)
    y = R.builtin.alloc_tensor((1, 10), "float32")
    linear(a, <float32 constant>, y)
    return y

After::

    a = R.builtin.alloc_tensor((1, 4, 8, 8, 8), "float16")
    conv2d_1(x, <float16 constant>, a)             # x: float32
    y = R.builtin.alloc_tensor((1, 10), "float32")
    linear_1(a, <float16 constant>, y)             # y: float32
    return y

What kernels compute in which precision is `in_float16`'s to say.
Needs CallTIRRewrite and CanonicalizeBindings before it: all that computes is a kernel by then,
TVM's too. Feeds AddByKernelTwins.
"""

from collections.abc import Sequence

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Expr, GenericConst, GlobalVar
from tvm.relax import Call, Var
from tvm.tirx import PrimFunc

from tvm_dynprune.errors import NotLoweredError
from tvm_dynprune.kernels.float16 import LARGEST, in_float16
from tvm_dynprune.passes.dataflow import bindings_of, op_name, operands, shape_of
from tvm_dynprune.passes.merge_small_kernels import MERGEABLE


@tvm.transform.module_pass(opt_level=0, name="UseFloat16")
class UseFloat16:
    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        converted = _Converted(mod)
        for global_var, func in mod.functions_items():
            if isinstance(func, relax.Function) and "global_symbol" in (func.attrs or {}):
                new = _Function(converted, func, func.params, keeps=True).result()
                converted.builder.update_func(global_var, new)
        return relax.transform.DeadCodeElimination()(converted.builder.get())


def check_weights(mod: tvm.IRModule) -> None:
    """Raise NotLoweredError if a weight is too large for float16, whose largest is 65504."""
    largest = [0.0]

    def look(constant: GenericConst) -> GenericConst:
        if _dtype(constant) == "float32":
            values = np.abs(constant.value.numpy())
            largest.append(float(values.max(initial=0, where=np.isfinite(values))))
        return constant

    for _, func in mod.functions_items():
        if isinstance(func, relax.Function):
            tvm_ffi.structural_map(func, [(GenericConst, look)])
    if max(largest) > LARGEST:
        raise NotLoweredError(
            f"a weight of {max(largest):.3g}: float16 ends at {LARGEST:.0f}; compile with "
            "--precision float32"
        )


class _Converted:
    """Kernels and private functions for the arguments that they are called with."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self.mod, self.builder = mod, relax.BlockBuilder(mod)
        self.known: dict[tuple, GlobalVar] = {}

    def kernel(self, var: GlobalVar, arguments: Sequence[Expr]) -> GlobalVar:
        """The kernel for arguments of which some are float16 now."""
        pairs = enumerate(zip(self.mod[var].params, arguments, strict=False))
        half = tuple(i for i, both in pairs if [*map(_dtype, both)] == ["float32", "float16"])
        if not half:
            return var
        key = (var.name_hint, half)
        if key not in self.known:
            kernel = self.mod[var]
            # TVM's own, and gates, compute in float32: what they allocate is small.
            ours = MERGEABLE in kernel.attrs and "op_pattern" in kernel.attrs
            kernel = in_float16(kernel, half, allocations=ours)
            self.known[key] = self.builder.add_func(kernel, var.name_hint)
        return self.known[key]

    def function(self, var: GlobalVar, arguments: Sequence[Expr], *, keeps: bool) -> GlobalVar:
        """A private function for such arguments; with `keeps` its result is float32."""
        half = tuple(i for i, one in enumerate(arguments) if _dtype(one) == "float16")
        key = (var.name_hint, half, keeps)
        if key not in self.known:
            func = self.mod[var]
            params = [
                Var(param.name, relax.TensorType(shape_of(param), "float16"))
                if i in half
                else param
                for i, param in enumerate(func.params)
            ]
            new = _Function(self, func, params, keeps=keeps).result()
            self.known[key] = self.builder.add_func(new, var.name_hint)
        return self.known[key]


class _Function:
    """Converts one function; `params` stand for its own."""

    def __init__(
        self, converted: _Converted, func: relax.Function, params: Sequence[Var], *, keeps: bool
    ) -> None:
        self.converted, self.func, self.params = converted, func, list(params)
        self.builder = converted.builder
        self.new: dict[Expr, Expr] = dict(zip(func.params, params, strict=True))
        self.constants: dict[GenericConst, Expr] = {}
        self.kept: set[Var] = {*operands(func.body.body)} if keeps else set()

    def result(self) -> relax.Function:
        body = self._sequence(self.func.body)
        new = relax.Function(self.params, body, body.body.ty, self.func.is_pure, self.func.attrs)
        return self.builder.normalize(new)

    def _sequence(self, sequence: relax.SeqExpr) -> relax.SeqExpr:
        bindings = bindings_of(sequence)
        for binding in reversed(bindings):  # names and views of what is kept, and its branches
            if binding.var in self.kept:
                value = binding.value
                is_if = isinstance(value, relax.If)
                ends = (value.true_branch.body, value.false_branch.body) if is_if else (value,)
                self.kept.update(var for end in ends for var in operands(end))
        block = [self._bound(binding) for binding in bindings]
        return relax.SeqExpr([relax.BindingBlock(block)], self._replaced(sequence.body))

    def _bound(self, binding: relax.Binding) -> relax.Binding:
        value = self._value(binding.var, binding.value)
        if not isinstance(value, relax.If):
            value = self.builder.normalize(value)
        ty = value.true_branch.body.ty if isinstance(value, relax.If) else value.ty
        self.new[binding.var] = Var(binding.var.name, ty)
        return relax.VarBinding(self.new[binding.var], value)

    def _value(self, var: Var, value: Expr) -> Expr:
        if isinstance(value, relax.If):
            branches = [self._sequence(one) for one in (value.true_branch, value.false_branch)]
            return relax.If(self._replaced(value.cond), *branches)
        if not isinstance(value, Call):
            return self._replaced(value)
        if op_name(value) == "builtin.alloc_tensor":
            return value if var in self.kept else _half_allocation(value)
        arguments = [self._replaced(argument) for argument in value.args]
        op = value.op
        if isinstance(op, GlobalVar):
            if isinstance(self.converted.mod[op], PrimFunc):
                op = self.converted.kernel(op, arguments)
            else:
                op = self.converted.function(op, arguments, keeps=var in self.kept)
        return Call(op, arguments, value.attrs, value.ty_args)

    def _replaced(self, expr: Expr) -> Expr:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._replaced(one) for one in expr.fields])
        if isinstance(expr, GenericConst) and _dtype(expr) == "float32":
            if expr not in self.constants:
                self.constants[expr] = relax.const(expr.value.numpy().astype(np.float16))
            return self.constants[expr]
        return self.new.get(expr, expr)


def _half_allocation(call: Call) -> Call:
    """An allocation of float16 where it was of float32."""
    shape, dtype, *rest = call.args
    if str(dtype.value) != "float32":
        return call
    return relax.op.builtin.alloc_tensor(shape, "float16", *rest)


def _dtype(expr: Expr) -> str:
    return str(getattr(expr.ty, "dtype", ""))
