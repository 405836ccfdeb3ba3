# SPDX-License-Identifier: Apache-2.0
"""AddDenseTwin: keep the network without its gates as a second function, to compare times with.

Before::

    def main(x):
        z = R.multiply(y, mask)                    # a gate

After::

    def main(x):
        z = R.multiply(y, mask)
    def dense(x):
        z = y                                      # and nothing computes the mask

A realised fraction compares with this function: what the network would cost had nobody gated it.
Its outputs are those of the network with all gates open and their scales at 1.
Needs the simplifying passes before it; feeds FuseKernels.
"""

import tvm
from tvm import relax

from tvm_dynprune.passes.dataflow import Dataflow, rebuild, result_of, substitute
from tvm_dynprune.passes.gates import find_gates

TWIN = "dense"


@tvm.transform.module_pass(opt_level=0, name="AddDenseTwin")
class AddDenseTwin:
    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        if any(global_var.name_hint == TWIN for global_var in mod.get_global_vars()):
            return mod
        functions = dict(mod.functions_items())
        functions[tvm.ir.GlobalVar(TWIN)] = _without_gates(mod["main"])
        return tvm.IRModule(functions, attrs=mod.attrs)


def _without_gates(func: relax.Function) -> relax.Function:
    flow = Dataflow(func)
    ungated = {gate.product: gate.feature for gate in find_gates(flow) if gate.reason is None}
    values = {
        var: substitute(value, ungated)
        for var, value in flow.definition.items()
        if var not in ungated
    }
    twin = rebuild(func, values, substitute(result_of(func), ungated))
    return relax.utils.copy_with_new_vars(twin).with_attr("global_symbol", TWIN)
