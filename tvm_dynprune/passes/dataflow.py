# SPDX-License-Identifier: Apache-2.0
"""Reading and rebuilding the single dataflow block that our passes work on."""

import heapq
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Expr, GenericConst
from tvm.relax import Call, Var

Constant = np.ndarray


def op_name(expr: Expr) -> str:
    """Name of a call's operator without the dialect, such as "nn.conv2d"; "" if it has none."""
    if isinstance(expr, Call) and isinstance(expr.op, tvm.ir.Op):
        return expr.op.name.removeprefix("relax.")
    return ""


def shape_of(expr: Expr) -> tuple[int, ...] | None:
    """Static shape of a tensor; None if it is no tensor or its shape is not constant."""
    shape = getattr(expr.ty, "shape", None)
    if not isinstance(shape, relax.ShapeExpr):
        return None
    sizes = [getattr(size, "value", None) for size in shape]
    return None if None in sizes else tuple(int(size) for size in sizes)


def constant_of(expr: Expr) -> Constant | None:
    """The array of a tensor constant, else None."""
    if not isinstance(expr, GenericConst):
        return None
    value = expr.value
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value, str(expr.ty.dtype))


def channel_vector(expr: Expr, channels: int) -> Constant | None:
    """(C,) float32 values of a constant that is one number per channel, or one for all."""
    value = constant_of(expr)
    if value is None or value.size not in (1, channels):
        return None
    if value.size == channels and channels > 1:
        wanted = ((1, channels, 1, 1), (channels, 1, 1))
        if value.shape not in wanted:
            return None
    elif value.ndim > 4:
        return None
    return np.broadcast_to(value.reshape(-1).astype("float32"), (channels,))


class Dataflow:
    """Who defines and who uses each variable of a function with one block of bindings.

    `outputs` counts as one more use of the variables that the function returns.
    """

    def __init__(self, func: relax.Function) -> None:
        self.func = func
        self.bindings = bindings_of(func.body)
        self.definition: dict[Var, Expr] = {b.var: b.value for b in self.bindings}
        self.position = {binding.var: i for i, binding in enumerate(self.bindings)}
        self.users: dict[Var, list[Var]] = {}
        for binding in self.bindings:
            for var in operands(binding.value):
                self.users.setdefault(var, []).append(binding.var)
        self.outputs = set(relax.analysis.free_vars(func.body.body))

    def value(self, expr: Expr) -> Expr:
        """The expression that a variable is bound to; anything else is returned as it is."""
        return self.definition.get(expr, expr) if isinstance(expr, Var) else expr

    def only_user(self, var: Var) -> Var | None:
        """The one variable computed from `var`; None if there are several, or it is returned."""
        users = self.users.get(var, [])
        return users[0] if len(set(users)) == 1 and var not in self.outputs else None

    def depends_on(self, var: Var, ancestor: Var) -> bool:
        """Whether `var` is computed from `ancestor`, or is it."""
        return var in self.descendants(ancestor)

    def descendants(self, var: Var) -> set[Var]:
        """`var` and everything computed from it."""
        found, stack = set(), [var]
        while stack:
            current = stack.pop()
            if current not in found:
                found.add(current)
                stack.extend(self.users.get(current, []))
        return found


def bindings_of(sequence: relax.SeqExpr) -> list[relax.VarBinding]:
    """The bindings of all blocks, in order; not those in branches."""
    return [binding for block in sequence.blocks for binding in block.bindings]


def with_body(func: relax.Function, body: relax.SeqExpr) -> relax.Function:
    """The function with another body, which returns what the old one did."""
    return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs, func.span)


def operands(value: Expr) -> list[Var]:
    """The variables that an expression reads (functions that it calls not counted)."""
    return list(relax.analysis.free_vars(value))


def substitute(expr: Expr, mapping: Mapping[Var, Expr]) -> Expr:
    """The expression with variables replaced; looks into calls and tuples."""
    if isinstance(expr, Var):
        return mapping.get(expr, expr)
    if not any(var in mapping for var in operands(expr)):
        return expr
    if isinstance(expr, relax.Tuple):
        fields = [substitute(field, mapping) for field in expr.fields]
        return relax.BlockBuilder().normalize(relax.Tuple(fields))
    if isinstance(expr, relax.TupleGetItem):
        item = relax.TupleGetItem(substitute(expr.tuple_value, mapping), expr.index)
        return relax.BlockBuilder().normalize(item)
    if isinstance(expr, Call):
        arguments = [substitute(argument, mapping) for argument in expr.args]
        call = Call(expr.op, arguments, expr.attrs, expr.ty_args, expr.span)
        return relax.BlockBuilder().normalize(call)
    raise NotImplementedError(f"substitute into {type(expr).__name__}")


def rebuild(
    func: relax.Function,
    values: Mapping[Var, Expr],
    result: Expr,
    params: Iterable[Var] | None = None,
) -> relax.Function:
    """A function that binds `values`, in an order in which each comes after what it reads.

    Variables that `result` does not need are left out; otherwise the given order is kept.
    """
    params = list(func.params if params is None else params)
    needed = _needed(values, result)
    rank = {var: i for i, var in enumerate(values)}
    pending = {var: {v for v in operands(values[var]) if v in values} for var in needed}
    users: dict[Var, list[Var]] = {}
    for var, reads in pending.items():
        for read in reads:
            users.setdefault(read, []).append(var)
    ready = [(rank[var], i) for i, var in enumerate(needed) if not pending[var]]
    heapq.heapify(ready)
    position = {var: i for i, var in enumerate(needed)}
    bindings = []
    while ready:
        var = needed[heapq.heappop(ready)[1]]
        bindings.append(relax.VarBinding(var, values[var]))
        for user in users.get(var, []):
            pending[user].discard(var)
            if not pending[user]:
                heapq.heappush(ready, (rank[user], position[user]))
    builder = relax.BlockBuilder()
    result = builder.normalize(result)
    output = relax.Var("result", result.ty)
    bindings.append(relax.VarBinding(output, result))
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], output)
    rebuilt = relax.Function(params, body, result.ty, func.is_pure, func.attrs, func.span)
    return builder.normalize(rebuilt)


def _needed(values: Mapping[Var, Expr], result: Expr) -> list[Var]:
    found: dict[Var, None] = {}
    stack = [v for v in operands(result) if v in values]
    while stack:
        var = stack.pop()
        if var not in found:
            found[var] = None
            stack.extend(v for v in operands(values[var]) if v in values)
    return list(found)


def result_of(func: relax.Function) -> Expr:
    """The returned expression in terms of the block's variables.

    A function's last binding often only gives the result an output variable; looked through.
    """
    definition = {binding.var: binding.value for binding in bindings_of(func.body)}
    result = func.body.body
    while isinstance(result, Var) and isinstance(definition.get(result), Var | relax.Tuple):
        result = definition[result]
    return result


Functions = dict[tvm.ir.GlobalVar, tvm.ir.BaseFunc]


def map_functions(
    mod: tvm.IRModule, rewrite: Callable[[relax.Function, Functions], relax.Function]
) -> tvm.IRModule:
    """Apply `rewrite` to the module's entry functions (those with a global symbol).

    It may add, replace and remove other functions in the dictionary that it gets.
    """
    functions: Functions = dict(mod.functions_items())
    for global_var, func in list(functions.items()):
        if isinstance(func, relax.Function) and func.attrs and "global_symbol" in func.attrs:
            functions[global_var] = rewrite(func, functions)
    return tvm.IRModule(functions, attrs=mod.attrs)
