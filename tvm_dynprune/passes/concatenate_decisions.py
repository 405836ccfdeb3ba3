# SPDX-License-Identifier: Apache-2.0
"""ConcatenateDecisions: return what all gates decided as one tensor.

Before::

    return (y, open1, open2)                       # per gate (N, C_i) bool

After::

    opened = R.call_tir(concatenate, (open1, open2))   # (N, sum of C_i) bool
    return (y, opened)

Each result is allocated, and fetched from a device, on its own, and networks have dozens of gates.
Needs ExposeGates before it, whose ``num_outputs`` tells outputs from decisions, and ToNonDataflow.
"""

import tvm
from tvm import relax

from tvm_dynprune.kernels.concatenate import concatenate
from tvm_dynprune.passes.dataflow import result_of, shape_of


@tvm.transform.module_pass(opt_level=0, name="ConcatenateDecisions")
class ConcatenateDecisions:
    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        builder = relax.BlockBuilder(mod)
        for global_var, func in mod.functions_items():
            if isinstance(func, relax.Function) and "num_outputs" in (func.attrs or {}):
                outputs = int(func.attrs["num_outputs"])
                if len(func.ret_ty.fields) > outputs + 1:
                    builder.update_func(global_var, _concatenated(builder, func, outputs))
        return builder.get()


def _concatenated(
    builder: relax.BlockBuilder, func: relax.Function, outputs: int
) -> relax.Function:
    fields = list(result_of(func).fields)
    decided = fields[outputs:]
    shapes = [shape_of(var) for var in decided]
    batch, channels = shapes[0][0], [shape[1] for shape in shapes]
    kernel = builder.add_func(concatenate(batch, channels), "concatenate")
    ty = relax.TensorType((batch, sum(channels)), "bool")
    call = builder.normalize(relax.call_tir(kernel, decided, ty))
    opened = relax.Var("opened", call.ty)
    result = builder.normalize(relax.Tuple([*fields[:outputs], opened]))
    block = relax.BindingBlock([relax.VarBinding(opened, call)])
    body = relax.SeqExpr([*func.body.blocks, block], result)
    new = relax.Function(func.params, body, result.ty, func.is_pure, func.attrs, func.span)
    return builder.normalize(new)
