# SPDX-License-Identifier: Apache-2.0
"""Lowering of a convolution and the depthwise convolution or pooling behind it to one kernel.

Before::

    h = conv1(x, w1, b1, open)                     # Composite = "dynprune.conv2d"
    y = depthwise1(h, w2, b2, open)                # Composite = "dynprune.depthwise_conv2d"

After::

    y = R.call_tir(conv2d_depthwise_conv2d, (x, w1, b1, list[0], list[1], w2, b2))

where h is larger than a near cache, nobody else reads it, and both go by the same list.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tvm.relax import Var

from tvm_dynprune.kernels.conv2d_window import Conv2dWindow, conv2d_window
from tvm_dynprune.passes.composite import CompositeCall
from tvm_dynprune.passes.conv2d_spec import KernelTarget, conv2d_spec
from tvm_dynprune.passes.layout_plan import LayoutPlan
from tvm_dynprune.passes.lower_conv2d import convolution_with_arguments, open_inputs
from tvm_dynprune.passes.lower_window import (
    WINDOWS,
    goes_by_blocks,
    open_blocks,
    window_spec,
    window_values,
)

if TYPE_CHECKING:
    from tvm_dynprune.passes.lower_kernels import KernelEmitter

_NEAR_BYTES = 512 * 1024  # of a second level of cache


def inner_convolutions(plan: LayoutPlan, target: KernelTarget) -> dict[Var, Var]:
    """Depthwise convolution or pooling → the convolution that its kernel computes as well."""
    return {
        var: composite.arguments["x"]
        for var, composite in plan.composites.items()
        if composite.kind in WINDOWS
        and composite.kind != "affine"
        and _is_inner(plan, target, var, composite)
    }


def _is_inner(plan: LayoutPlan, target: KernelTarget, var: Var, window: CompositeCall) -> bool:
    x = window.arguments["x"]
    conv2d = plan.composites.get(x)
    if conv2d is None or conv2d.kind != "conv2d" or "residual" in conv2d.arguments:
        return False
    if not var.same_as(plan.flow.only_user(x)) or not x.same_as(plan.holder(x)):
        return False
    if "if" in (str(conv2d.attribute("lowering")), str(window.attribute("lowering"))):
        return False
    spec = conv2d_spec(plan, x, conv2d, target)
    if spec.schedule.algorithm != "direct" or spec.y.sample_bytes <= _NEAR_BYTES:
        return False
    if not goes_by_blocks(window):
        return spec.visit == "all"
    same = window.arguments["open_out"].same_as(conv2d.arguments.get("open_out"))
    return same and spec.visit == "blocks"


def lower_conv2d_window(emitter: KernelEmitter, var: Var, window: CompositeCall) -> Var:
    """Emit both; returns the blocked result of the second."""
    plan, x = emitter.plan, window.arguments["x"]
    conv2d = plan.composites[x]
    inner = replace(conv2d_spec(plan, x, conv2d, emitter.target), fill=False)
    lists_in = open_inputs(emitter, conv2d, inner)
    spec = Conv2dWindow(inner, window_spec(emitter, var, window))
    _, arguments = convolution_with_arguments(emitter, conv2d, spec.by_row, lists_in)
    arguments += [*open_blocks(emitter, window), *window_values(emitter, window, spec.window)]
    name = f"conv2d_{conv2d.layer}_{window.kind}"
    return emitter.compute(var, conv2d_window(spec), name, arguments)
