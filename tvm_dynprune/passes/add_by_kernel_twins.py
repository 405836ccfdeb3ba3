# SPDX-License-Identifier: Apache-2.0
"""AddByKernelTwins: copy every function, for timing kernel by kernel.

Before::

    def main(x): ...                               # calls branch
    def branch(x): ...

After, besides these::

    def main_by_kernel(x): ...                     # calls branch_by_kernel
    def branch_by_kernel(x): ...

MergeKernelCalls leaves the copies alone, so that the virtual machine, and what watches it, sees
each kernel. Feeds MergeKernelCalls.
"""

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import GlobalVar

BY_KERNEL = "_by_kernel"  # ends the names of the copies, and is their attribute


@tvm.transform.module_pass(opt_level=0, name="AddByKernelTwins")
class AddByKernelTwins:
    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        builder, twins = relax.BlockBuilder(mod), {}
        for global_var, func in mod.functions_items():
            name = global_var.name_hint + BY_KERNEL
            is_ours = isinstance(func, relax.Function) and not is_by_kernel(func)
            if is_ours and name not in mod:
                twins[global_var] = builder.add_func(_copy(func, name), name)
        for twin in twins.values():
            calling_twins = [(GlobalVar, lambda var: twins.get(var, var))]
            builder.update_func(twin, tvm_ffi.structural_map(builder.get()[twin], calling_twins))
        return builder.get()


def is_by_kernel(func: relax.Function) -> bool:
    """Whether AddByKernelTwins made the function."""
    return BY_KERNEL in (func.attrs or {})


def _copy(func: relax.Function, name: str) -> relax.Function:
    """A copy whose mark keeps the builder from taking it for the same function."""
    copy = relax.utils.copy_with_new_vars(func).with_attr(BY_KERNEL, 1)
    return copy.with_attr("global_symbol", name) if "global_symbol" in copy.attrs else copy
