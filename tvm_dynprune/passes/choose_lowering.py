# SPDX-License-Identifier: Apache-2.0
"""ChooseLowering: decide for every kernel how it skips, as attribute ``lowering``.

==========  ========================================================================================
``dense``   compute everything, multiply by the mask
``if``      one Relax ``If`` per channel group
``indexed`` one kernel that walks lists of open channels
==========  ========================================================================================

``auto`` is `if` for a block that one decision closes, so that nothing of it is called, as long as
the batch is one input. Otherwise it is `indexed`, but `dense` for a convolution with so little to
skip that lists would not pay: its expected open_in * open_out, from calibration data if there is
any, is above break-even. It leaves the algorithm free as well (`ChooseAlgorithm`).
Needs AnnotateOpen before it; feeds LowerKernels.
"""

from collections.abc import Mapping

import tvm
from tvm import relax

from tvm_dynprune.passes.composite import is_composite
from tvm_dynprune.passes.dataflow import shape_of

LOWERINGS = ("auto", "dense", "if", "indexed")
BREAK_EVEN = 0.95  # open_in * open_out above which the lists cost more than they save


@tvm.transform.module_pass(opt_level=0, name="ChooseLowering")
class ChooseLowering:
    """Set `lowering` on every composite function.

    Parameters
    ----------
    lowering
        One of `LOWERINGS`.
    open_products
        Layer name → mean of open_in * open_out over calibration inputs, between 0 and 1.
    """

    def __init__(
        self, lowering: str = "auto", open_products: Mapping[str, float] | None = None
    ) -> None:
        if lowering not in LOWERINGS:
            raise ValueError(f"lowering {lowering!r}: one of {', '.join(LOWERINGS)}")
        self.lowering = lowering
        self.open_products = dict(open_products or {})

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        functions = dict(mod.functions_items())
        for global_var, func in functions.items():
            if is_composite(func) and "lowering" not in func.attrs:
                choice = self._choose(func)
                functions[global_var] = func.with_attr("lowering", choice)
        return tvm.IRModule(functions, attrs=mod.attrs)

    def _choose(self, func: relax.Function) -> str:
        if self.lowering != "auto":
            return self.lowering
        layer, batch = str(func.attrs["layer"]), shape_of(func.body)[0]
        if func.attrs.get("block", "") and batch == 1:
            return "if"
        return "dense" if self.open_products.get(layer, 0.0) > BREAK_EVEN else "indexed"
