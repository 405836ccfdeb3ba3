# SPDX-License-Identifier: Apache-2.0
"""ChooseLowering: decide for every kernel how it skips, as attribute ``lowering``.

==========  ========================================================================================
``dense``   compute everything, multiply by the mask
``if``      one Relax ``If`` per channel group
``indexed`` one kernel that walks lists of open channels
==========  ========================================================================================

``auto`` is `indexed`, but `dense` for a convolution with so little to skip that lists would not
pay: its expected open_in * open_out, from calibration data if there is any, is above break-even. It
leaves the algorithm free as well (`ChooseAlgorithm`).
Needs AnnotateOpen before it; feeds LowerKernels.
"""

from collections.abc import Mapping

import tvm

from tvm_dynprune.passes.composite import is_composite

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
                choice = self._choose(str(func.attrs["layer"]))
                functions[global_var] = func.with_attr("lowering", choice)
        return tvm.IRModule(functions, attrs=mod.attrs)

    def _choose(self, layer: str) -> str:
        if self.lowering != "auto":
            return self.lowering
        return "dense" if self.open_products.get(layer, 0.0) > BREAK_EVEN else "indexed"
