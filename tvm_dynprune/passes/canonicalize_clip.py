# SPDX-License-Identifier: Apache-2.0
"""CanonicalizeClip: write a kernel that takes a maximum or minimum with a number as a clip.

Before::

    lv = R.call_tir(maximum, (x, R.const(0.0)))    # a kernel of topi, as ONNX's Clip is imported
    y = R.call_tir(minimum, (lv, R.const(6.0)))

After::

    lv = R.clip(x, 0.0, inf)
    y = R.clip(lv, -inf, 6.0)

Nothing looks into kernels: with them, no ReLU6 of an ONNX file would be part of a convolution.
Leaves kernels that do anything else, and bounds that are not known.
"""

from math import inf

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, GlobalVar
from tvm.ir.expr import TensorLoad
from tvm.relax import Call, Var, op

from tvm_dynprune.passes.dataflow import Functions, constant_of, map_functions, op_name, shape_of
from tvm_dynprune.passes.rewriter import Rewriter


@tvm.transform.module_pass(opt_level=0, name="CanonicalizeClip")
class CanonicalizeClip:
    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, lambda func, functions: _CanonicalizeClip(func, functions).run())


class _CanonicalizeClip(Rewriter):
    def __init__(self, func: tvm.relax.Function, functions: Functions) -> None:
        super().__init__(func)
        self.functions = functions

    def rewrite(self, var: Var, call: Expr) -> Expr | None:
        if op_name(call) != "call_tir":
            return None
        bounded = _bounded(self.functions, call)
        if bounded is None:
            return None
        x, bound, bounds = bounded
        if shape_of(x) != shape_of(var):
            return None
        return op.clip(x, *((bound, inf) if bounds is tirx.Max else (-inf, bound)))


def _bounded(functions: Functions, call: Call) -> tuple[Expr, float, type] | None:
    """The tensor, the number and Max or Min, if that is what a kernel computes elementwise."""
    kernel, arguments = call.args[0], list(call.args[1].fields)
    body = functions.get(kernel) if isinstance(kernel, GlobalVar) else None
    if not isinstance(body, tirx.PrimFunc) or len(arguments) != 2:
        return None
    numbers = [constant_of(argument) for argument in arguments]
    known = [i for i, n in enumerate(numbers) if n is not None and n.size == 1]
    stores: list[tirx.BufferStore] = []
    tvm_ffi.structural_walk(body.body, (tirx.BufferStore, stores.append))
    if len(known) != 1 or len(stores) != 1:
        return None
    value = stores[0].value
    if not isinstance(value, tirx.Max | tirx.Min):
        return None
    loads = [load for load in (value.a, value.b) if isinstance(load, TensorLoad)]
    indices = {load.source: load.indices for load in loads}
    x = 1 - known[0]
    if set(indices) != set(body.params[:2]) or not _same(
        indices[body.params[x]], stores[0].indices
    ):
        return None
    return arguments[x], float(numbers[known[0]].reshape(())), type(value)


def _same(indices, others) -> bool:
    return len(indices) == len(others) and all(
        a.same_as(b) for a, b in zip(indices, others, strict=True)
    )
