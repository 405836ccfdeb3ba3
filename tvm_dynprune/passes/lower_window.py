# SPDX-License-Identifier: Apache-2.0
"""Lowering of depthwise convolutions, affine functions and poolings; see `LowerKernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Var

from tvm_dynprune.kernels.conv2d import pack_channels, pack_factors
from tvm_dynprune.kernels.global_average import GlobalAverage, global_average
from tvm_dynprune.kernels.window import Window, pack_depthwise_weight, window
from tvm_dynprune.passes.activations import parse_activation
from tvm_dynprune.passes.composite import BY_CHANNEL, CompositeCall
from tvm_dynprune.passes.dataflow import channel_vector, constant_of, shape_of

if TYPE_CHECKING:
    from tvm_dynprune.passes.lower_kernels import KernelEmitter

WINDOWS = {
    **dict.fromkeys(BY_CHANNEL, "depthwise"),  # an affine function is one with a window of 1x1
    "max_pool2d": "max",
    "avg_pool2d": "average",
}


def lower_window(emitter: KernelEmitter, var: Var, composite: CompositeCall) -> Var:
    """Emit what treats each channel alone; returns its blocked result."""
    spec = window_spec(emitter, var, composite)
    arguments = [
        emitter.blocked(composite.arguments["x"]),
        *window_values(emitter, composite, spec),
        *open_blocks(emitter, composite),
    ]
    return emitter.compute(var, window(spec), f"{composite.kind}_{composite.layer}", arguments)


def window_spec(emitter: KernelEmitter, var: Var, composite: CompositeCall) -> Window:
    """What the kernel computes."""
    attrs, given, plan = composite.operator.attrs, composite.arguments, emitter.plan
    steps = [step for step in composite.epilogue if step not in ("bias", "scale")]
    weight, listed = _weight(composite), goes_by_blocks(composite)
    has_steps = composite.kind != "affine"
    return Window(
        kind=WINDOWS[composite.kind],
        x=plan.feature_map(given["x"]),
        y=plan.feature_map(var),
        kernel=_pair(attrs.pool_size) if weight is None else weight.shape[2:],
        stride=_pair(attrs.strides) if has_steps else (1, 1),
        pad=_pair(attrs.padding) if has_steps else (0, 0),
        dilation=_pair(attrs.dilation) if has_steps else (1, 1),
        bias="bias" in given,
        after=parse_activation(steps[0]) if steps else None,
        scale="scale" in given and not (listed and _is_settled(composite, plan.lanes)),
        count_padding=bool(getattr(attrs, "count_include_pad", False)),
        listed=listed,
        fill=plan.fills(var),
        pools=emitter.pooling(var) is not None,
        registers=emitter.target.registers,
    )


def window_values(emitter: KernelEmitter, composite: CompositeCall, spec: Window) -> list[Expr]:
    """The kernel's arguments weight, bias, factors and scale, those that there are."""
    given, weight = composite.arguments, _weight(composite)
    arguments: list[Expr] = []
    if weight is not None:
        arguments.append(relax.const(pack_depthwise_weight(weight, spec)))
    if spec.bias:
        arguments.append(relax.const(pack_channels(constant_of(given["bias"]), spec.y)))
    if spec.factors:
        arguments.append(relax.const(pack_factors(composite.factors, spec.y)))
    if spec.scale:
        arguments.append(emitter.plain(given["scale"]))
    return arguments


def _weight(composite: CompositeCall) -> np.ndarray | None:
    """Weights (C, 1, KH, KW) of a convolution; None of a pooling."""
    if composite.kind == "affine":
        channels = shape_of(composite.operator)[1]
        return channel_vector(composite.arguments["weight"], channels).reshape(-1, 1, 1, 1)
    return constant_of(composite.arguments["weight"]) if "weight" in composite.arguments else None


def lower_global_average(emitter: KernelEmitter, var: Var, composite: CompositeCall) -> Var:
    """Emit a global average pooling; returns its blocked result."""
    lists = open_blocks(emitter, composite)
    spec = GlobalAverage(emitter.plan.feature_map(composite.arguments["x"]), listed=bool(lists))
    out = [relax.TensorType(emitter.plan.feature_map(var).shape, "float32")]
    arguments = [emitter.blocked(composite.arguments["x"]), *lists]
    return emitter.call(global_average(spec), "global_average", arguments, out)


def open_blocks(emitter: KernelEmitter, composite: CompositeCall) -> list[Expr]:
    """Block list and counts, where the kernel goes by them."""
    if not goes_by_blocks(composite):
        return []
    return emitter.open_list(composite.arguments["open_out"], emitter.plan.lanes)


def goes_by_blocks(composite: CompositeCall) -> bool:
    """Whether the kernel of what treats each channel alone visits a list of blocks."""
    return str(composite.attribute("lowering")) == "indexed" and "open_out" in composite.arguments


def _is_settled(composite: CompositeCall, lanes: int) -> bool:
    """Whether going by a list does what the mask would do."""
    aligned = int(composite.attribute("open_unit")) % lanes == 0
    return aligned and bool(composite.attribute("binary_scale", 0))


def _pair(values: object) -> tuple[int, int]:
    first, second = [int(value) for value in values][:2]  # type: ignore[attr-defined]
    return first, second
