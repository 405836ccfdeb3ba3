# SPDX-License-Identifier: Apache-2.0
"""Rewriter: local rewriting of calls, in the order of the dataflow block."""

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Call, Var
from tvm_ffi import structural_equal

from tvm_dynprune.passes.dataflow import Dataflow, map_functions, rebuild, result_of, substitute

# Elementwise operations that rewritings move past changes of shape.
UNARY = ("nn.relu", "clip", "sigmoid", "tanh", "nn.silu", "nn.gelu", "nn.leakyrelu")
BINARY = ("add", "subtract", "multiply", "divide")


class Rewriter:
    """Base of the passes that replace single calls.

    A subclass defines ``rewrite(var, call)``, which returns the replacement of a call, whose
    operands are rewritten already, or None. `value` looks up what a variable is bound to now, and
    `users` how often it was read before the pass. New calls nest: they get variables of their own.
    """

    def __init__(self, func: relax.Function) -> None:
        self.func = func
        self.flow = Dataflow(func)
        self.values: dict[Var, Expr] = {}
        self._alias: dict[Var, Expr] = {}
        self._builder = relax.BlockBuilder()

    def rewrite(self, var: Var, call: Expr) -> Expr | None:
        """The replacement of ``var = call``, or None to keep it."""
        raise NotImplementedError

    def value(self, expr: Expr) -> Expr:
        """What a variable is bound to, after rewriting; any other expression as it is."""
        return self.values.get(expr, expr) if isinstance(expr, Var) else expr

    def is_only_use(self, expr: Expr) -> bool:
        """Whether a variable was read once, before the pass, and is not returned."""
        return isinstance(expr, Var) and (
            expr not in self.flow.definition or self.flow.only_user(expr) is not None
        )

    def run(self) -> relax.Function:
        """The rewritten function, without what nobody reads any more."""
        for binding in self.flow.bindings:
            value = self._substitute(binding.value)
            new = self.rewrite(binding.var, value) if isinstance(value, Call) else None
            self._bind(binding.var, value if new is None else new)
        return rebuild(self.func, self.values, self._substitute(result_of(self.func)))

    def _substitute(self, expr: Expr) -> Expr:
        return substitute(expr, self._alias)

    def _bind(self, var: Var, value: Expr) -> None:
        value = self._flatten(value)
        if not isinstance(value, Call | relax.Tuple | relax.TupleGetItem):
            self._alias[var] = value
        elif structural_equal(value.ty, var.ty):
            self.values[var] = value
        else:
            self._alias[var] = self._fresh(var.name, value)

    def _fresh(self, name: str, value: Expr) -> Var:
        new = relax.DataflowVar(name, value.ty)
        self.values[new] = value
        return new

    def _flatten(self, expr: Expr, inner: bool = False) -> Expr:
        """Give every nested call a variable, and every call its type."""
        if not isinstance(expr, Call) or expr in self.values:
            return expr
        arguments = [self._flatten(a, inner=True) if isinstance(a, Call) else a for a in expr.args]
        call = Call(expr.op, arguments, expr.attrs, expr.ty_args, expr.span)
        call = self._builder.normalize(call)
        return self._fresh("lv", call) if inner else call


def constant(values: np.ndarray) -> Expr:
    """A float32 tensor constant."""
    return relax.const(np.ascontiguousarray(values, "float32"), "float32")


def rewriting_pass(name: str, rewriter: type[Rewriter]) -> tvm.transform.Pass:
    """A module pass that runs `rewriter` over every entry function."""

    def transform(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, lambda func, _mod: rewriter(func).run())

    return tvm.transform.module_pass(transform, opt_level=0, name=name)
