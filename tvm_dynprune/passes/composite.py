# SPDX-License-Identifier: Apache-2.0
"""Composite functions: what one kernel will compute, as a private function of plain Relax ops.

The body says what the function means; attributes say what lowering needs to know:

=================  =================================================================================
``Composite``      "dynprune.conv2d", "dynprune.grouped_conv2d", "dynprune.depthwise_conv2d",
                   "dynprune.transposed_conv2d", "dynprune.max_pool2d", "dynprune.avg_pool2d",
                   "dynprune.resize2d", "dynprune.layer_norm", "dynprune.group_norm",
                   "dynprune.affine" or "dynprune.global_average"
``layer``          the layer's name
``roles``          what each parameter is: x, weight, scale_in (of x), bias, scale, residual,
                   factor_0, factor_1 ... (for each channel, of activations), open_in,
                   open_out
``epilogue``       steps after the convolution: bias, scale, residual, relu, clip:LOW:HIGH
``binary_scale``   1 if the scale is a mask of zeros and ones
``block``          "inner" or "last", of a block that one decision closes; else empty
``open_unit``      neighbouring channels of open_out that open together; ``open_unit_in`` of open_in
``lowering``       dense, if or indexed
``algorithm``      of a conv2d: direct, winograd_2 or winograd_4; ``costs``: of each, as JSON
``schedule``       of a conv2d that was tuned: its `Schedule`, as JSON
=================  =================================================================================
"""

from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Call, Var

from tvm_dynprune.passes.dataflow import Constant, Functions, constant_of, shape_of

PREFIX = "dynprune."
SCALE_IN = "scale_in"
FACTOR = "factor_"  # of an activation, for each channel; the body has it as a constant
SUMS = ("conv2d", "grouped_conv2d")  # kinds that sum over input channels
CONVOLUTIONS = (*SUMS, "depthwise_conv2d")
NORMS = ("layer_norm", "group_norm")
BY_CHANNEL = ("depthwise_conv2d", "affine")  # kinds with weights, but for each channel alone


@dataclass(frozen=True)
class CompositeCall:
    """A call of a composite function, taken apart."""

    global_var: tvm.ir.GlobalVar
    func: relax.Function
    arguments: dict[str, Expr]  # by role

    @property
    def kind(self) -> str:
        """Such as "conv2d"."""
        return kind_of(self.func)

    @property
    def layer(self) -> str:
        """The layer's name."""
        return str(self.func.attrs["layer"])

    @property
    def epilogue(self) -> list[str]:
        """The steps after the convolution."""
        return [str(step) for step in self.func.attrs["epilogue"]]

    @property
    def factors(self) -> list[Constant]:
        """What activations have for each channel."""
        given = self.arguments.items()
        return [constant_of(value) for role, value in given if role.startswith(FACTOR)]

    @property
    def operator(self) -> Call:
        """The convolution or pooling in the body."""
        return operator_of(self.func)

    def attribute(self, name: str, default: object = None) -> object:
        """An attribute of the function."""
        return self.func.attrs[name] if name in self.func.attrs else default


def as_composite(functions: Functions, value: Expr) -> CompositeCall | None:
    """`value` as a composite call, or None if it is something else."""
    if not isinstance(value, Call) or not isinstance(value.op, tvm.ir.GlobalVar):
        return None
    func = functions[value.op]
    if not isinstance(func, relax.Function) or not func.attrs or "Composite" not in func.attrs:
        return None
    roles = [str(role) for role in func.attrs["roles"]]
    return CompositeCall(value.op, func, dict(zip(roles, value.args, strict=True)))


def operator_of(func: relax.Function) -> Call:
    """The convolution or pooling in a composite function's body."""
    has_scale = SCALE_IN in (str(role) for role in func.attrs["roles"])
    return func.body.blocks[0].bindings[int(has_scale)].value


def geometry_of(call: Call) -> tuple[tuple[int, int], ...]:
    """Kernel, stride, and padding at the top and left, of a convolution."""
    stride, pad = (
        tuple(int(v) for v in values)[:2] for values in (call.attrs.strides, call.attrs.padding)
    )
    return shape_of(call.args[1])[2:], stride, pad


def kind_of(func: relax.Function) -> str:
    """The kind of a composite function, such as "conv2d"."""
    return str(func.attrs["Composite"]).removeprefix(PREFIX)


def is_composite(func: object) -> bool:
    """Whether a module's function is one of ours."""
    return isinstance(func, relax.Function) and bool(func.attrs) and "Composite" in func.attrs


def add_composite(functions: Functions, name: str, func: relax.Function) -> tvm.ir.GlobalVar:
    """Add a composite function to `functions` under a name that is not taken."""
    global_var = tvm.ir.GlobalVar(name)
    relax.expr._update_type(global_var, func.ty)
    functions[global_var] = func
    return global_var


def with_arguments(
    functions: Functions, call: CompositeCall, extra: dict[str, Var], **attributes: object
) -> Call:
    """The call with more arguments, which the function's body ignores, and more attributes.

    The function is replaced in `functions` (each is called once); other modules keep theirs.
    """
    params = list(call.func.params)
    params += [relax.Var(role, argument.ty) for role, argument in extra.items()]
    func = relax.Function(params, call.func.body, call.func.ret_ty, True, call.func.attrs)
    func = func.with_attr("roles", [*call.arguments, *extra])
    for name, value in attributes.items():
        func = func.with_attr(name, value)
    del functions[call.global_var]
    fresh = relax.utils.copy_with_new_vars(relax.BlockBuilder().normalize(func))
    global_var = add_composite(functions, call.global_var.name_hint, fresh)
    return relax.BlockBuilder().normalize(
        Call(global_var, [*call.arguments.values(), *extra.values()])
    )
