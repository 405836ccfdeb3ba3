# SPDX-License-Identifier: Apache-2.0
"""MergeKernelCalls: one call of the virtual machine for all kernels up to its next branch.

Before::

    a = R.builtin.alloc_tensor((1, 4, 8, 8, 16), "float32")
    conv2d(x, w1, a)
    y = R.builtin.alloc_tensor((1, 10), "float32")
    linear(a, w2, y)
    return y

After::

    y = R.builtin.alloc_tensor((1, 10), "float32")
    main_kernels(x, w1, y, w2)
    return y

    @T.prim_func
    def main_kernels(x, w1, y, w2):
        workspace = T.alloc_buffer((16384,), "uint8")
        conv2d(x, w1, <tensor at workspace[0]>)
        linear(<tensor at workspace[0]>, w2, y)

The virtual machine takes about a microsecond to allocate a kernel's tensors and to call it, and
compiled code some nanoseconds; what only kernels read lies where `plan_memory` puts it.
Needs CallTIRRewrite and CanonicalizeBindings before it, and AddByKernelTwins, whose functions stay
as they are.
"""

from collections import Counter
from collections.abc import Iterable
from math import prod

import tvm
from tvm import relax, tirx
from tvm.ir import Expr
from tvm.relax import Call, Var
from tvm.tirx import Buffer, PrimFunc

from tvm_dynprune.passes.add_by_kernel_twins import is_by_kernel
from tvm_dynprune.passes.dataflow import bindings_of, op_name, operands, shape_of, with_body
from tvm_dynprune.passes.plan_memory import Interval, plan_memory

_ALIGNMENT = 64  # bytes, as TVM aligns tensors
_SMALLEST_WORKSPACE = 1024  # bytes: smaller ones TVM puts on the stack, aligned to 16


@tvm.transform.module_pass(opt_level=0, name="MergeKernelCalls")
class MergeKernelCalls:
    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        builder = relax.BlockBuilder(mod)
        for global_var, func in mod.functions_items():
            if isinstance(func, relax.Function) and not is_by_kernel(func):
                merge = _Merge(builder, func, global_var.name_hint)
                builder.update_func(global_var, merge.function())
        return builder.get()


class _Merge:
    """Merges the calls of one function, in its branches too."""

    def __init__(self, builder: relax.BlockBuilder, func: relax.Function, name: str) -> None:
        self.builder, self.func, self.name = builder, func, name
        self.uses = Counter(_uses(func.body))

    def function(self) -> relax.Function:
        return self.builder.normalize(with_body(self.func, self._sequence(self.func.body)))

    def _sequence(self, sequence: relax.SeqExpr) -> relax.SeqExpr:
        merged: list[relax.Binding] = []
        run: list[relax.Binding] = []
        for binding in bindings_of(sequence):
            if self._calls_kernel(binding) or op_name(binding.value) == "builtin.alloc_tensor":
                run.append(binding)
            else:
                merged += [*self._merged(run), self._with_branches(binding)]
                run = []
        return relax.SeqExpr([relax.BindingBlock([*merged, *self._merged(run)])], sequence.body)

    def _with_branches(self, binding: relax.Binding) -> relax.Binding:
        value = binding.value
        if not isinstance(value, relax.If):
            return binding
        branches = [self._sequence(branch) for branch in (value.true_branch, value.false_branch)]
        return relax.VarBinding(binding.var, relax.If(value.cond, *branches))

    def _calls_kernel(self, binding: relax.Binding) -> bool:
        op = binding.value.op if isinstance(binding.value, Call) else None
        return isinstance(op, tvm.ir.GlobalVar) and isinstance(self.builder.get()[op], PrimFunc)

    def _merged(self, run: list[relax.Binding]) -> list[relax.Binding]:
        """What takes the place of bindings that allocate tensors and call kernels."""
        calls = [binding.value for binding in run if self._calls_kernel(binding)]
        if len(calls) < 2:
            return run
        inside = Counter(var for call in calls for var in operands(call))
        allocations = [binding for binding in run if not self._calls_kernel(binding)]
        inner = [b.var for b in allocations if inside[b.var] == self.uses[b.var]]
        kernel = _Kernels(calls, inner)
        global_var = self.builder.add_func(kernel.function(), f"{self.name}_kernels")
        call = self.builder.normalize(Call(global_var, list(kernel.params)))
        outer = [binding for binding in allocations if binding.var not in inner]
        return [*outer, relax.VarBinding(Var("_", call.ty), call)]


class _Kernels:
    """A TIR function that calls kernels in order.

    Parameters
    ----------
    calls
        Calls of kernels; their arguments are variables, constants, and integers.
    inner
        Variables that nothing else reads: pieces of the function's workspace.
    """

    def __init__(self, calls: list[Call], inner: list[Var]) -> None:
        self.calls, self.inner = calls, set(inner)
        arguments = dict.fromkeys(argument for call in calls for argument in call.args)
        self.params: dict[Expr, Buffer] = {
            argument: tirx.decl_buffer(shape_of(argument), argument.ty.dtype, "tensor")
            for argument in arguments
            if argument not in self.inner and not isinstance(argument, tirx.IntImm)
        }

    def function(self) -> PrimFunc:
        steps: dict[Var, list[int]] = {}
        for step, call in enumerate(self.calls):
            for argument in call.args:
                if argument in self.inner:
                    steps.setdefault(argument, []).append(step)
        intervals = [Interval(_bytes(var), at[0], at[-1]) for var, at in steps.items()]
        offsets, size = plan_memory(intervals, _ALIGNMENT)
        length = tirx.IntImm("int64", max(size, _SMALLEST_WORKSPACE))  # large batches pass 2 GiB
        workspace = tirx.decl_buffer((length,), "uint8", "workspace")
        places = {
            var: workspace[tirx.IntImm("int64", offset)]
            for var, offset in zip(steps, offsets, strict=True)
        }
        calls = [self._direct(call, places) for call in self.calls]
        body = tirx.SeqStmt([tirx.AllocBuffer(workspace), *map(tirx.Evaluate, calls)])
        return PrimFunc(list(self.params.values()), body)

    def _direct(self, call: Call, places: dict[Var, Expr]) -> Expr:
        """The call, by the kernel's symbol: by its variable TVM passes one argument too many."""
        arguments = [
            _tensor(argument, places[argument])
            if argument in places
            else self.params.get(argument, argument)
            for argument in call.args
        ]
        return tirx.call_cpacked(call.op.name_hint, *arguments)


def _tensor(argument: Expr, start: Expr) -> Expr:
    """What a kernel is given for a tensor whose first element lies at `start`."""
    shape = shape_of(argument)
    sizes = tirx.tvm_stack_make_shape(*shape)
    data, dtype = tirx.address_of(start), str(argument.ty.dtype)
    return tirx.tvm_stack_make_array(data, sizes, 0, len(shape), dtype, 0)


def _bytes(var: Var) -> int:
    return prod(shape_of(var)) * tvm.DataType(var.ty.dtype).itemsize


def _uses(sequence: relax.SeqExpr) -> Iterable[Var]:
    """The variables that a sequence reads, as often as there are bindings that do."""
    yield from operands(sequence.body)
    for binding in bindings_of(sequence):
        value = binding.value
        if isinstance(value, relax.If):
            yield from operands(value.cond)
            yield from _uses(value.true_branch)
            yield from _uses(value.false_branch)
        else:
            yield from operands(value)
