# SPDX-License-Identifier: Apache-2.0
"""SinkIntoBranches: compute what only one branch of an ``If`` reads inside that branch.

Before::

    h = R.call_tir(conv2d_1, (x, w1, b1))
    y = R.call_tir(conv2d_2, (h, w2, b2, x)) if open else R.call_tir(conv2d_closed, (x,))

After::

    y = branch(x) if open else R.call_tir(conv2d_closed, (x,))

    def branch(x):                                 # private
        h = R.call_tir(conv2d_1, (x, w1, b1))
        return R.call_tir(conv2d_2, (h, w2, b2, x))

So a residual block that a gate closes is skipped whole. A branch of several calls has to be a
function of its own: TVM does not fuse inside branches (upstream pull request 17033).
Needs LowerKernels before it; feeds TVM's own pipeline.
"""

import json
from dataclasses import dataclass, field

import tvm
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Call, Var

from tvm_dynprune.passes.dataflow import bindings_of, operands, with_body
from tvm_dynprune.passes.lower_kernels import KERNEL_CALLS
from tvm_dynprune.passes.merge_small_kernels import MERGEABLE

Bindings = dict[Var, Expr]


@tvm.transform.module_pass(opt_level=0, name="SinkIntoBranches")
class SinkIntoBranches:
    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        builder = relax.BlockBuilder(mod)
        changed = False
        for global_var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                bindings = _bindings(func.body)
                scope = _Scope(builder, bindings, {*operands(func.body.body)})
                scope.sink()
                if scope.has_sunk:
                    changed = True
                    builder.update_func(global_var, _rebuilt(builder, func, scope))
        return builder.get() if changed else mod


@dataclass
class _Scope:
    """The bindings of a function, or of a branch that becomes one; `results` are read from outside.

    `order` tells in which order, branches included, variables are bound at run time.
    """

    builder: relax.BlockBuilder
    bindings: Bindings
    results: set[Var]
    order: list[Var] = field(default_factory=list)
    has_sunk: bool = False

    def sink(self) -> None:
        """Move what only a branch reads into a function that the branch calls."""
        order: dict[Var, list[Var]] = {}
        for var in reversed(list(self.bindings)):
            value = self.bindings.get(var)
            if isinstance(value, relax.If):
                branches = [
                    (value.true_branch, value.false_branch),
                    (value.false_branch, value.true_branch),
                ]
                inner = [self._branch(var, value.cond, *pair) for pair in branches]
                self.bindings[var] = relax.If(value.cond, *(expr for expr, _ in inner))
                order[var] = [name for _, names in inner for name in names]
        self.order = [name for var in self.bindings for name in order.get(var, [var])]

    def _branch(
        self, var: Var, condition: Expr, branch: Expr, other: Expr
    ) -> tuple[Expr, list[Var]]:
        """One branch of the ``If`` bound to `var`, and its variables in order."""
        inside = _bindings(branch)
        sunk = self._only_read_by(var, {*operands(condition), *operands(other)})
        if not sunk:
            return branch, list(inside)
        self.has_sunk = True
        scope = _Scope(self.builder, sunk | inside, {*operands(branch.body)})
        scope.sink()
        body = relax.SeqExpr([_block(scope.bindings)], branch.body)
        params = operands(body)
        function = relax.Function(params, body, branch.body.ty)
        function = relax.utils.copy_with_new_vars(self.builder.normalize(function))
        return Call(self.builder.add_func(function, "branch"), params), scope.order

    def _only_read_by(self, conditional: Var, others: set[Var]) -> Bindings:
        """Take out what nobody needs but one branch of the ``If``; `others` it reads elsewhere."""
        users: dict[Var, set[Var]] = {}
        for var, value in self.bindings.items():
            for read in operands(value):
                users.setdefault(read, set()).add(var)
        names, inside = list(self.bindings), {conditional}
        for var in reversed(names[: names.index(conditional)]):
            is_read_outside = var in self.results or var in others
            if not is_read_outside and users.get(var) and users[var] <= inside:
                inside.add(var)
        return {var: self.bindings.pop(var) for var in names if var in inside - {conditional}}


def _rebuilt(builder: relax.BlockBuilder, func: relax.Function, scope: _Scope) -> relax.Function:
    body = relax.SeqExpr([_block(scope.bindings)], func.body.body)
    rebuilt = with_body(func, body)
    if KERNEL_CALLS in (func.attrs or {}):
        names = _names_in_order(builder.get(), func)
        calls = dict(zip(names, json.loads(str(func.attrs[KERNEL_CALLS])), strict=True))
        ordered = [calls[name] for name in scope.order if name in calls]
        rebuilt = rebuilt.with_attr(KERNEL_CALLS, json.dumps(ordered))
    return builder.normalize(rebuilt)


def _names_in_order(mod: tvm.IRModule, func: relax.Function) -> list[Var]:
    """Variables bound to kernels that are no part of a gate, as `KERNEL_CALLS` lists them."""
    found = []
    for var, value in _bindings(func.body).items():
        inner = [(var, value)]
        if isinstance(value, relax.If):
            branches = _bindings(value.true_branch) | _bindings(value.false_branch)
            inner = list(branches.items())
        for name, call in inner:
            kernel = call.args[0] if isinstance(call, Call) and call.args else None
            if isinstance(kernel, tvm.ir.GlobalVar) and not int(mod[kernel].attrs[MERGEABLE]):
                found.append(name)
    return found


def _bindings(body: Expr) -> Bindings:
    return {binding.var: binding.value for binding in bindings_of(body)}


def _block(bindings: Bindings) -> relax.BindingBlock:
    return relax.BindingBlock([relax.VarBinding(var, value) for var, value in bindings.items()])
