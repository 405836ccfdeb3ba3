# SPDX-License-Identifier: Apache-2.0
"""The three lowerings of a convolution; see `LowerKernels`.

``dense``::

    y = R.call_tir(conv2d, (x, w, b, mask))        # every channel, times the mask

``indexed``::

    y = R.call_tir(conv2d, (x, w, b, channels_in, count_in, list_out, count_out))

``if``, one conditional per channel group, each writing its blocks of one tensor in place::

    y0 = R.call_tir(conv2d_closed, ())             # zeros, or the residual
    y1 = R.call_tir_inplace(conv2d, (x, w, b, y0), 3, tir_vars=(0,)) if open[0] else y0
    y2 = R.call_tir_inplace(conv2d, (x, w, b, y1), 3, tir_vars=(1,)) if open[1] else y1
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Var, op
from tvm.tirx import PrimFunc

from tvm_dynprune.kernels.activation import Activation
from tvm_dynprune.kernels.any_open import any_open
from tvm_dynprune.kernels.conv2d import Conv2d, conv2d_closed, pack_channels
from tvm_dynprune.kernels.direct_conv2d import direct_conv2d, pack_direct_weight
from tvm_dynprune.kernels.space_to_depth import (
    conv2d_over_squares,
    space_to_depth,
    weight_over_squares,
)
from tvm_dynprune.kernels.winograd import Winograd, pack_winograd_weight
from tvm_dynprune.kernels.winograd_conv2d import winograd_conv2d
from tvm_dynprune.kernels.winograd_input import winograd_input
from tvm_dynprune.passes.choose_algorithm import tile_side
from tvm_dynprune.passes.composite import CompositeCall
from tvm_dynprune.passes.dataflow import constant_of, shape_of
from tvm_dynprune.passes.layout_plan import tensor

if TYPE_CHECKING:
    from tvm_dynprune.passes.lower_kernels import KernelEmitter


def lower_conv2d(emitter: KernelEmitter, var: Var, composite: CompositeCall) -> Var:
    """Emit one convolution; returns its result in blocked layout."""
    lowering = str(composite.attribute("lowering"))
    spec = _spec(emitter, var, composite)
    if lowering == "indexed":
        return _indexed(emitter, var, composite, spec)
    if lowering == "if" and "open_out" in composite.arguments:
        return _conditional(emitter, var, composite, spec)
    return _call(emitter, var, composite, spec, [], [])


def _spec(emitter: KernelEmitter, var: Var, composite: CompositeCall) -> Conv2d:
    plan, attrs = emitter.plan, composite.operator.attrs
    epilogue, arguments = composite.epilogue, composite.arguments
    activations = {
        place: parse_activation(step) for place, step in _activation_places(epilogue).items()
    }
    residual = arguments.get("residual")
    return Conv2d(
        x=plan.feature_map(arguments["x"]),
        y=plan.feature_map(var),
        kernel=shape_of(arguments["weight"])[2:],
        stride=tuple(int(s) for s in attrs.strides),
        pad=tuple(int(p) for p in attrs.padding)[:2],
        dilation=tuple(int(d) for d in attrs.dilation),
        bias="bias" in arguments,
        before=activations.get("before"),
        scale="scale" in arguments,
        residual=None if residual is None else plan.feature_map(residual),
        after=activations.get("after"),
        quick_weights=bool(composite.attribute("weights_quick", 0)),
        registers=emitter.registers,
        by_lane=emitter.by_lane,
    )


def _activation_places(epilogue: list[str]) -> dict[str, str]:
    """Activation steps, before the scale and residual or after them."""
    places, seen_middle = {}, False
    for step in epilogue:
        if step in ("scale", "residual"):
            seen_middle = True
        elif step != "bias":
            places["after" if seen_middle else "before"] = step
    return places


def parse_activation(step: str) -> Activation:
    """The activation that an epilogue step names."""
    if step == "relu":
        return Activation(0.0, None)
    _, low, high = step.split(":")
    return Activation(float(low), float(high))


def _indexed(emitter: KernelEmitter, var: Var, composite: CompositeCall, spec: Conv2d) -> Var:
    lists_in: list[Expr] = []
    lists_out: list[Expr] = []
    lanes = spec.y.lanes
    if "open_in" in composite.arguments:
        spec = replace(spec, open_in=True, unit_in=int(composite.attribute("open_unit_in")))
        unit = lanes if spec.by_input_block else 1
        lists_in = emitter.open_list(composite.arguments["open_in"], unit)
    inputs_only = str(composite.attribute("algorithm")).endswith("_in")
    if "open_out" in composite.arguments and not inputs_only:
        unit = gcd(int(composite.attribute("open_unit")), lanes)
        by_block = unit == lanes
        lists_out = emitter.open_list(composite.arguments["open_out"], lanes if by_block else 1)
        fill = spec.residual is not None or emitter.plan.fills(var)
        # Channels outside the list are not computed, so a mask of zeros and ones has done its work.
        scale = spec.scale and not composite.attribute("binary_scale", 0)
        visit = "blocks" if by_block else "gather"
        spec = replace(spec, visit=visit, fill=fill, scale=scale)
    return _call(emitter, var, composite, spec, lists_in, lists_out)


def _call(
    emitter: KernelEmitter,
    var: Var,
    composite: CompositeCall,
    spec: Conv2d,
    lists_in: list[Expr],
    lists_out: list[Expr],
) -> Var:
    kernel, arguments = _kernel(emitter, composite, spec, lists_in)
    return emitter.compute(var, kernel, f"conv2d_{composite.layer}", [*arguments, *lists_out])


def _kernel(
    emitter: KernelEmitter, composite: CompositeCall, spec: Conv2d, lists_in: list[Expr]
) -> tuple[PrimFunc, list[Expr]]:
    """The chosen algorithm's kernel, and its arguments up to the list of outputs."""
    weight = constant_of(composite.arguments["weight"])
    algorithm = str(composite.attribute("algorithm"))
    if algorithm == "winograd_strided":
        image, affine = emitter.image(composite.arguments["x"])
        weight, spec = weight_over_squares(weight, spec), conv2d_over_squares(spec)
        kernel = space_to_depth(shape_of(image), spec.x, affine)
        x = emitter.call(kernel, "space_to_depth", [emitter.plain(image)], [tensor(spec.x)])
    else:
        x = emitter.blocked(composite.arguments["x"])
    if algorithm in ("direct", "direct_in"):
        kernel, packed = direct_conv2d(spec), pack_direct_weight(weight, spec)
    else:
        winograd = Winograd(spec, tile_side(algorithm, spec.kernel[0]))
        transformed = [relax.TensorType(winograd.transformed_shape, "float32")]
        name = f"winograd_input_{composite.layer}"
        by_block = lists_in
        if winograd.by_channel:
            by_block = emitter.open_list(composite.arguments["open_in"], spec.x.lanes)
        x = emitter.call(winograd_input(winograd), name, [x, *by_block], transformed)
        kernel, packed = winograd_conv2d(winograd), pack_winograd_weight(weight, winograd)
    return kernel, [
        x,
        relax.const(packed),
        *_epilogue_arguments(emitter, composite, spec),
        *lists_in,
    ]


def _epilogue_arguments(
    emitter: KernelEmitter, composite: CompositeCall, spec: Conv2d
) -> list[Expr]:
    given, arguments = composite.arguments, []
    if spec.bias:
        bias = np.broadcast_to(constant_of(given["bias"]).reshape(-1), (spec.y.channels,))
        arguments.append(relax.const(pack_channels(bias, spec.y)))
    if spec.scale:
        arguments.append(emitter.plain(given["scale"]))
    if spec.residual is not None:
        arguments.append(emitter.blocked(given["residual"]))
    return arguments


def _conditional(emitter: KernelEmitter, var: Var, composite: CompositeCall, spec: Conv2d) -> Var:
    builder, lanes = emitter.builder, spec.y.lanes
    is_open = composite.arguments["open_out"]
    unit = int(composite.attribute("open_unit"))
    group_blocks = unit // lanes if unit % lanes == 0 else 1
    # A branch computes a whole group for the whole batch; where only a part is open, the mask acts.
    exact = unit % lanes == 0 and spec.y.batch == 1 and composite.attribute("binary_scale", 0)
    spec = replace(spec, visit="group", group_blocks=group_blocks, scale=spec.scale and not exact)
    groups = -(-spec.y.blocks // group_blocks)
    kernel = any_open(spec.y.batch, spec.y.channels, group_blocks * lanes)
    decided = emitter.call(
        kernel, "any_open", [emitter.plain(is_open)], [relax.TensorType((groups,), "bool")]
    )
    out = tensor(spec.y)
    residual = [] if spec.residual is None else [emitter.blocked(composite.arguments["residual"])]
    y = emitter.compute(var, conv2d_closed(spec), "conv2d_closed", residual)
    kernel, arguments = _kernel(emitter, composite, spec, [])
    global_var = emitter.add(kernel, f"conv2d_{composite.layer}")
    for group in range(groups):
        condition = builder.emit(op.take(decided, relax.const(group, "int64"), axis=0))
        branch = relax.call_tir_inplace(
            global_var, [*arguments, y, relax.prim_value(group)], [len(arguments)], out
        )
        y = builder.emit(relax.If(condition, branch, y), var.name)
    return y
