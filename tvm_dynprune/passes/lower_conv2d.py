# SPDX-License-Identifier: Apache-2.0
"""The three lowerings of a convolution; see `LowerKernels`.

``dense``::

    y = R.call_tir(conv2d, (x, w, b, mask))        # every channel, times the mask

``indexed``::

    y = R.call_tir(conv2d, (x, w, b, channels_in, count_in, list_out, count_out))

``if``, one conditional per channel group, each writing its blocks of one tensor in place::

    y0 = R.call_tir(conv2d_closed, (open,))        # zeros, or the residual
    y1 = R.call_tir_inplace(conv2d, (x, w, b, y0), 3, tir_vars=(0,)) if open[0] else y0
    y2 = R.call_tir_inplace(conv2d, (x, w, b, y1), 3, tir_vars=(1,)) if open[1] else y1

and for the last convolution of a block that one decision closes, in whose branch `SinkIntoBranches`
puts the others::

    y = R.call_tir(conv2d, (h, w, b, x)) if open[0] else R.call_tir(conv2d_closed, (x,))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tvm import relax, tirx
from tvm.ir import Expr
from tvm.relax import Var, op

from tvm_dynprune.kernels.activation import Formula
from tvm_dynprune.kernels.any_open import any_open
from tvm_dynprune.kernels.channel_groups import grouped_weight
from tvm_dynprune.kernels.conv2d import Conv2d, pack_channels, pack_factors
from tvm_dynprune.kernels.conv2d_closed import conv2d_closed
from tvm_dynprune.kernels.convolution import Convolution
from tvm_dynprune.kernels.scale_weight import scale_weight
from tvm_dynprune.kernels.space_to_depth import (
    conv2d_over_squares,
    space_to_depth,
    weight_over_squares,
)
from tvm_dynprune.passes.composite import SCALE_IN, CompositeCall
from tvm_dynprune.passes.conv2d_spec import conv2d_spec
from tvm_dynprune.passes.dataflow import constant_of, shape_of
from tvm_dynprune.passes.layout_plan import tensor

if TYPE_CHECKING:
    from tvm_dynprune.passes.lower_kernels import KernelEmitter


def lower_conv2d(emitter: KernelEmitter, var: Var, composite: CompositeCall) -> Var:
    """Emit one convolution; returns its result in blocked layout."""
    spec = conv2d_spec(emitter.plan, var, composite, emitter.target)
    if spec.visit == "group":
        return _conditional(emitter, var, composite, spec)
    if _in_place(emitter, var, composite, spec):
        spec = replace(spec, in_place=True, fill=False)
    spec = replace(spec, pools=emitter.pooling(var) is not None)
    lists_in = open_inputs(emitter, composite, spec)
    lists_out: list[Expr] = []
    if spec.visit != "all":
        unit = spec.y.lanes if spec.visit == "blocks" else 1
        lists_out = emitter.open_list(composite.arguments["open_out"], unit)
    convolution, arguments = convolution_with_arguments(emitter, composite, spec, lists_in)
    name, arguments = f"conv2d_{composite.layer}", [*arguments, *lists_out]
    if str(composite.attribute("lowering")) == "if" and composite.attribute("block") == "last":
        branch = emitter.computation(var, convolution.kernel, name, arguments)
        closed = emitter.computation(var, *_closed(emitter, composite, spec))
        condition = _decisions(emitter, composite, spec.y.channels)(0)
        return emitter.builder.emit(relax.If(condition, branch, closed), var.name)
    if spec.in_place:
        emitter.write_over(var, composite.arguments["residual"])
    return emitter.compute(var, convolution.kernel, name, arguments)


def open_inputs(emitter: KernelEmitter, composite: CompositeCall, spec: Conv2d) -> list[Expr]:
    """List and counts of the inputs that are walked, where there is a list."""
    if not spec.open_in:
        return []
    unit = spec.x.lanes if spec.by_input_block else 1
    return emitter.open_list(composite.arguments["open_in"], unit)


def _in_place(emitter: KernelEmitter, var: Var, composite: CompositeCall, spec: Conv2d) -> bool:
    """Whether closed channels can stay what they are in the residual, and the others replace it.

    Nobody may read the residual any more, and the activation must leave it as it is.
    """
    plan, residual = emitter.plan, composite.arguments.get("residual")
    if spec.visit != "blocks" or not plan.is_last_user(var, residual):
        return False
    if composite.arguments["x"].same_as(residual):
        return False
    if plan.pooling(residual) is not None and emitter.pooling(residual) is None:
        return False
    producer = plan.composites[residual]
    same = producer.epilogue[-1:] == composite.epilogue[-1:]
    activated = spec.after is None or (same and not isinstance(spec.after, Formula))
    pooled = emitter.pooling(var) is None or emitter.pooling(residual) is not None
    return activated and pooled and plan.feature_map(residual) == spec.y


def can_pool(emitter: KernelEmitter, var: Var, composite: CompositeCall) -> bool:
    """Whether what computes a convolution can pool it on the way; branches cannot."""
    if str(composite.attribute("lowering")) == "if":
        return False
    spec = conv2d_spec(emitter.plan, var, composite, emitter.target)
    if spec.schedule.algorithm == "winograd_strided":
        spec = conv2d_over_squares(spec)
    return Convolution(spec).can_pool


def convolution_with_arguments(
    emitter: KernelEmitter, composite: CompositeCall, spec: Conv2d, lists_in: list[Expr]
) -> tuple[Convolution, list[Expr]]:
    """The chosen algorithm, and its kernel's arguments up to the list of outputs."""
    weight = constant_of(composite.arguments["weight"])
    if composite.kind == "grouped_conv2d":
        groups = int(composite.operator.attrs.groups)
        weight = grouped_weight(weight, groups, spec.groups, spec.run)
    if spec.schedule.algorithm == "winograd_strided":
        image, affine = emitter.image(composite.arguments["x"])
        weight, spec = weight_over_squares(weight, spec), conv2d_over_squares(spec)
        kernel = space_to_depth(shape_of(image), spec.x, affine)
        x = emitter.call(kernel, "space_to_depth", [emitter.plain(image)], [tensor(spec.x)])
    else:
        x = emitter.blocked(composite.arguments["x"])
    convolution = Convolution(spec)
    if convolution.first is not None and convolution.winograd is not None:
        winograd, by_block = convolution.winograd, lists_in
        if winograd.by_channel:
            by_block = emitter.open_list(composite.arguments["open_in"], spec.x.lanes)
        transformed = [relax.TensorType(winograd.transformed_shape, "float32")]
        name = f"winograd_input_{composite.layer}"
        x = emitter.call(convolution.first, name, [x, *by_block], transformed)
    packed: Expr = relax.const(convolution.pack(weight))
    if SCALE_IN in composite.arguments:
        arguments = [packed, emitter.plain(composite.arguments[SCALE_IN]), *lists_in]
        out = [relax.TensorType(convolution.weight_shape, "float32")]
        packed = emitter.call(scale_weight(spec), f"scale_weight_{composite.layer}", arguments, out)
    return convolution, [
        x,
        packed,
        *_epilogue_arguments(emitter, composite, spec),
        *lists_in,
    ]


def _epilogue_arguments(
    emitter: KernelEmitter, composite: CompositeCall, spec: Conv2d
) -> list[Expr]:
    given, arguments = composite.arguments, []
    if spec.bias:
        arguments.append(relax.const(pack_channels(constant_of(given["bias"]), spec.y)))
    arguments += _factors(composite, spec)
    if spec.scale:
        arguments.append(emitter.plain(given["scale"]))
    if not spec.in_place:
        return arguments + _residual(emitter, composite)
    pool = emitter.plan.pooling(given["residual"])
    return [*arguments, emitter.blocked(pool)] if spec.pools else arguments


def _factors(composite: CompositeCall, spec: Conv2d) -> list[Expr]:
    return [relax.const(pack_factors(composite.factors, spec.y))] if spec.factors else []


def _residual(emitter: KernelEmitter, composite: CompositeCall) -> list[Expr]:
    residual = composite.arguments.get("residual")
    return [] if residual is None else [emitter.blocked(residual)]


def _closed(
    emitter: KernelEmitter, composite: CompositeCall, spec: Conv2d
) -> tuple[tirx.PrimFunc, str, list[Expr]]:
    """Kernel, name and arguments of what y holds where everything is closed."""
    is_open = emitter.plain(composite.arguments["open_out"])
    arguments = _residual(emitter, composite) or [is_open]
    return conv2d_closed(spec), "conv2d_closed", [*arguments, *_factors(composite, spec)]


def _decisions(
    emitter: KernelEmitter, composite: CompositeCall, group_size: int
) -> Callable[[int], Var]:
    """Emit what opens each group for any sample; returns the scalar condition of one group."""
    is_open = composite.arguments["open_out"]
    batch, channels = shape_of(is_open)
    out = [relax.TensorType((-(-channels // group_size),), "bool")]
    kernel = any_open(batch, channels, group_size)
    decided = emitter.call(kernel, "any_open", [emitter.plain(is_open)], out)
    return lambda group: emitter.builder.emit(
        op.take(decided, relax.const(group, "int64"), axis=0, mode="clip")
    )


def _conditional(emitter: KernelEmitter, var: Var, composite: CompositeCall, spec: Conv2d) -> Var:
    builder, out = emitter.builder, tensor(spec.y)
    groups = -(-spec.y.blocks // spec.group_blocks)
    decision = _decisions(emitter, composite, spec.group_blocks * spec.y.lanes)
    y = emitter.compute(var, *_closed(emitter, composite, spec))
    convolution, arguments = convolution_with_arguments(emitter, composite, spec, [])
    global_var = emitter.add(convolution.kernel, f"conv2d_{composite.layer}")
    for group in range(groups):
        condition = decision(group)
        branch = relax.call_tir_inplace(
            global_var, [*arguments, y, relax.prim_value(group)], [len(arguments)], out
        )
        y = builder.emit(relax.If(condition, branch, y), var.name)
    return y
