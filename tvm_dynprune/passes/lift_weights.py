# SPDX-License-Identifier: Apache-2.0
"""lift_weights: large constants become elements of a tuple that every function is given.

Before::

    def main(x):
        a = branch(x)
        conv2d(a, <constant>, y)

After::

    def main(x, weights):                          # weights: Tuple(Tensor, ...)
        w0 = weights[0]
        a = branch(x, weights)
        conv2d(a, w0, y)

Inside a library, weights would be in memory three times while it runs: in the file, which is
mapped, in the string that TVM reads them from, and as tensors. Equal constants, as those of the
gated network and its dense twin, are one element.
Needs all of the virtual machine's own lowering before it: what checks arguments, and what frees
them after their last use, would take longer per weight than its kernel's call.
"""

import hashlib

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Expr, GenericConst, GlobalVar
from tvm.relax import Call, Var

SMALLEST_BYTES = 64 << 10  # what is smaller may be in memory three times


def lift_weights(mod: tvm.IRModule) -> tuple[tvm.IRModule, list[np.ndarray]]:
    """Return the module, every function with the parameter `weights`, and what to pass for it.

    It is no pass, since it returns more than a module.
    """
    lifted = _Lifted()
    used = {
        global_var: lifted.replaced(func)
        for global_var, func in mod.functions_items()
        if isinstance(func, relax.Function)
    }
    ty = relax.TupleType([_type(array) for array in lifted.arrays])
    renewed = {var: _with_parameter(var, func, ty) for var, (func, _) in used.items()}
    builder = relax.BlockBuilder()
    functions = {
        renewed.get(var, var): builder.normalize(_with_weights(*used[var], ty, renewed))
        if var in used
        else func
        for var, func in mod.functions_items()
    }
    return tvm.IRModule(functions, attrs=mod.attrs), lifted.arrays


class _Lifted:
    """The arrays that were lifted, and their places in the tuple."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.places: dict[tuple, int] = {}

    def replaced(self, func: relax.Function) -> tuple[relax.Function, dict[int, Var]]:
        """The function with variables for its large constants, and these by their places."""
        elements: dict[int, Var] = {}

        def replace(constant: GenericConst) -> Expr:
            if not isinstance(constant.value, tvm.runtime.Tensor):
                return constant
            value = constant.value.numpy()
            if value.nbytes < SMALLEST_BYTES:
                return constant
            place = self._place(value)
            return elements.setdefault(place, Var(f"w{place}", _type(value)))

        return tvm_ffi.structural_map(func, [(GenericConst, replace)]), elements

    def _place(self, value: np.ndarray) -> int:
        key = (str(value.dtype), value.shape, hashlib.sha256(value).digest())
        if key not in self.places:
            self.places[key] = len(self.arrays)
            self.arrays.append(value)
        return self.places[key]


def _with_parameter(var: GlobalVar, func: relax.Function, ty: relax.TupleType) -> GlobalVar:
    """A variable of the function's name, for it with one parameter more."""
    renewed = GlobalVar(var.name_hint)
    params = [*(param.ty for param in func.params), ty]
    relax.expr._update_type(renewed, relax.FuncType(params, func.ret_ty, func.is_pure))
    return renewed


def _with_weights(
    func: relax.Function,
    elements: dict[int, Var],
    ty: relax.TupleType,
    renewed: dict[GlobalVar, GlobalVar],
) -> relax.Function:
    """The function with `weights` as its last parameter, taken apart, and passed on to others."""
    weights = Var("weights", ty)

    def pass_on(call: Call) -> Call:
        if call.op not in renewed:
            return call
        return Call(renewed[call.op], [*call.args, weights], call.attrs, call.ty_args, call.span)

    taken = [
        relax.VarBinding(var, relax.TupleGetItem(weights, place))
        for place, var in sorted(elements.items())
    ]
    body = tvm_ffi.structural_map(func.body, [(Call, pass_on)])
    body = relax.SeqExpr([relax.BindingBlock(taken), *body.blocks], body.body)
    params = [*func.params, weights]
    return relax.Function(params, body, func.ret_ty, func.is_pure, func.attrs, func.span)


def _type(array: np.ndarray) -> relax.TensorType:
    return relax.TensorType(array.shape, str(array.dtype))
