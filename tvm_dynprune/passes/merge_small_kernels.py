# SPDX-License-Identifier: Apache-2.0
"""MergeSmallKernels: one kernel for what a gate takes, from pooling to the list of open blocks.

Before::

    pooled = R.call_tir(global_average, (x,))
    logits = R.call_tir(conv2d, (pooled, w, b))
    open = R.call_tir(fused_greater_cast, (logits,))
    items, count = R.call_tir(open_list, (open,))
    y = R.call_tir(conv2d_layer, (x, w2, items, count))

After::

    items, count = R.call_tir(merged_global_average_conv2d, (x, w, b))
    y = R.call_tir(conv2d_layer, (x, w2, items, count))

A call takes about as long as what such kernels compute. Merged are TVM's own kernels and those of
ours that are marked `MERGEABLE`, if all of their tensors are small; each runs on one thread.
Needs TVM's fusion before it; works on dataflow blocks of `call_tir`.
"""

from math import prod

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.ir import Expr
from tvm.relax import DataflowVar, Var
from tvm.tirx import Buffer, PrimFunc
from tvm.tirx.buffer import is_buffer_var

from tvm_dynprune.passes.dataflow import op_name, operands, with_body

MERGEABLE = "mergeable"  # attribute of our kernels: 1 if it may be merged, 0 if not
_MOST_ELEMENTS = 1 << 16  # of all tensors of a kernel: beyond it, threads pay

_TO_PLAIN_TIR = tvm.transform.Sequential(
    [
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.LowerOpaqueBlock(),
    ]
)


@tvm.transform.module_pass(opt_level=0, name="MergeSmallKernels")
class MergeSmallKernels:
    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        builder = relax.BlockBuilder(mod)
        changed = False
        for global_var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                blocks = [_merged_block(block, mod, builder) for block in func.body.blocks]
                if any(map(_differs, blocks, func.body.blocks)):
                    changed = True
                    builder.update_func(global_var, _with_blocks(func, blocks))
        return relax.transform.DeadCodeElimination()(builder.get()) if changed else mod


def _differs(after: relax.BindingBlock, before: relax.BindingBlock) -> bool:
    pairs = zip(after.bindings, before.bindings, strict=False)
    return len(after.bindings) != len(before.bindings) or not all(a.same_as(b) for a, b in pairs)


def _with_blocks(func: relax.Function, blocks: list[relax.BindingBlock]) -> relax.Function:
    body = relax.SeqExpr(blocks, func.body.body)
    return relax.BlockBuilder().normalize(with_body(func, body))


def _merged_block(
    block: relax.BindingBlock, mod: tvm.IRModule, builder: relax.BlockBuilder
) -> relax.BindingBlock:
    """The block with small kernels put off until somebody reads a result, and merged then."""
    if not isinstance(block, relax.DataflowBlock):
        return block
    bindings, result, group = list(block.bindings), [], _Group(mod)
    for i, binding in enumerate(bindings):
        if group.takes(binding):
            group.add(binding)
            continue
        if group.defined & set(operands(binding.value)):
            result += group.emit(bindings[i:], builder)
            group = _Group(mod)
        result.append(binding)
    return relax.DataflowBlock([*result, *group.emit([], builder)])


class _Group:
    """Bindings of small kernels, and of the items of their results."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self.mod = mod
        self.bindings: list[relax.VarBinding] = []
        self.kernels: dict[Var, PrimFunc] = {}
        self.defined: set[Var] = set()

    def takes(self, binding: relax.VarBinding) -> bool:
        """Whether the binding can be one of the group."""
        value = binding.value
        is_item = isinstance(value, relax.TupleGetItem) and value.tuple_value in self.kernels
        return is_item or _small_kernel(self.mod, value) is not None

    def add(self, binding: relax.VarBinding) -> None:
        kernel = _small_kernel(self.mod, binding.value)
        if kernel is not None:
            self.kernels[binding.var] = kernel
        self.bindings.append(binding)
        self.defined.add(binding.var)

    def emit(self, rest: list, builder: relax.BlockBuilder) -> list[relax.VarBinding]:
        """Bindings that take the group's place; `rest` are those that follow it."""
        if len(self.kernels) < 2:
            return self.bindings
        read = {var for binding in rest for var in operands(binding.value)}
        wanted = [
            binding.var
            for binding in self.bindings
            if binding.var in read or not isinstance(binding.var, DataflowVar)
        ]
        return _Merge(self).emit(wanted, builder)


def _small_kernel(mod: tvm.IRModule, value: Expr) -> PrimFunc | None:
    """The kernel that a binding calls, if it may be merged."""
    if op_name(value) != "call_tir" or len(value.args) > 2:
        return None
    kernel = mod[value.args[0]]
    if not int((kernel.attrs or {}).get(MERGEABLE, 1)):
        return None
    if not all(is_buffer_var(param) for param in kernel.params):
        return None
    elements = sum(prod(int(size) for size in param.shape) for param in kernel.params)
    return kernel if elements <= _MOST_ELEMENTS else None


class _Merge:
    """Puts the kernels of a group together.

    A result is known as (variable of the call, index among its results).
    """

    def __init__(self, group: _Group) -> None:
        self.group = group
        self.buffers: dict[tuple[Var, int], Buffer] = {}
        self.inputs: list[tuple[Expr, Buffer]] = []
        self.statements: list[tirx.Stmt] = []

    def emit(self, wanted: list[Var], builder: relax.BlockBuilder) -> list[relax.VarBinding]:
        """Bindings of the merged call and of the variables that are read outside."""
        names = []
        for binding in self.group.bindings:
            kernel = self.group.kernels.get(binding.var)
            if kernel is not None:
                self._append(binding.var, kernel, binding.value)
                names.append(binding.value.args[0].name_hint)
        fields = {var: self._results(var) for var in wanted}
        outputs = list(dict.fromkeys(result for results in fields.values() for result in results))
        kernel = self._kernel(outputs)
        global_var = builder.add_func(kernel, f"merged_{'_'.join(names)}"[:80])
        types = [_tensor_type(self.buffers[result]) for result in outputs]
        arguments = [expr for expr, _ in self.inputs]
        call = relax.call_tir(global_var, arguments, types if len(types) > 1 else types[0])
        merged = DataflowVar("merged", builder.normalize(call).ty)
        bindings = [relax.VarBinding(merged, builder.normalize(call))]
        for var, results in fields.items():
            items = [
                merged if len(outputs) == 1 else relax.TupleGetItem(merged, outputs.index(result))
                for result in results
            ]
            is_tuple = isinstance(var.ty, relax.TupleType)
            value = relax.Tuple(items) if is_tuple else items[0]
            bindings.append(relax.VarBinding(var, builder.normalize(value)))
        return bindings

    def _results(self, var: Var) -> list[tuple[Var, int]]:
        """The results that a variable of the group stands for."""
        if isinstance(var.ty, relax.TupleType):
            return [(var, i) for i in range(len(var.ty.fields))]
        return [self._source(var)]

    def _source(self, var: Var) -> tuple[Var, int]:
        for binding in self.group.bindings:
            if binding.var.same_as(var) and isinstance(binding.value, relax.TupleGetItem):
                return (binding.value.tuple_value, binding.value.index)
        return (var, 0)

    def _append(self, var: Var, kernel: PrimFunc, call: Expr) -> None:
        kernel = s_tir.renew_defs(_plain_tir(kernel))
        arguments = list(call.args[1].fields)
        known = {
            param: buffer
            for argument, param in zip(arguments, kernel.params, strict=False)
            if (buffer := self._buffer(argument, param)) is not param
        }
        for i, param in enumerate(kernel.params[len(arguments) :]):
            self.buffers[var, i] = param
        rules = [(tirx.For, _serial), (Var, lambda var: known.get(var, var))]
        self.statements.append(tvm_ffi.structural_map(kernel.body, rules))

    def _buffer(self, argument: Expr, param: Buffer) -> Buffer:
        """What holds an argument: for a new one, the parameter that asks for it."""
        if isinstance(argument, Var) and argument in self.group.defined:
            return self.buffers[self._source(argument)]
        for known, buffer in self.inputs:
            if known.same_as(argument):
                return buffer
        self.inputs.append((argument, param))
        return param

    def _kernel(self, outputs: list[tuple[Var, int]]) -> PrimFunc:
        inner = [buffer for result, buffer in self.buffers.items() if result not in outputs]
        body = tirx.SeqStmt([*(tirx.AllocBuffer(buffer) for buffer in inner), *self.statements])
        params = [buffer for _, buffer in self.inputs] + [self.buffers[r] for r in outputs]
        return PrimFunc(params, body).with_attrs({"tirx.noalias": True, MERGEABLE: 0})


def _plain_tir(kernel: PrimFunc) -> PrimFunc:
    """The kernel without schedulable blocks."""
    mod = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    return _TO_PLAIN_TIR(mod)["main"].without_attr("global_symbol")


def _serial(loop: tirx.For) -> tirx.Stmt:
    if loop.kind != tirx.ForKind.PARALLEL:
        return loop
    return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)


def _tensor_type(buffer: Buffer) -> relax.TensorType:
    return relax.TensorType([int(size) for size in buffer.shape], buffer.dtype)
