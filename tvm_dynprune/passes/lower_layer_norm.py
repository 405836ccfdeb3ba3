# SPDX-License-Identifier: Apache-2.0
"""Lowering of layer normalisation over channels; see `LowerKernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import relax
from tvm.relax import Var

from tvm_dynprune.kernels.conv2d import pack_channels
from tvm_dynprune.kernels.layer_norm import LayerNorm, layer_norm
from tvm_dynprune.passes.composite import CompositeCall
from tvm_dynprune.passes.dataflow import constant_of

if TYPE_CHECKING:
    from tvm_dynprune.passes.lower_kernels import KernelEmitter


def lower_layer_norm(emitter: KernelEmitter, var: Var, composite: CompositeCall) -> Var:
    """Emit a layer normalisation; returns its blocked result."""
    plan, x, call = emitter.plan, composite.arguments["x"], composite.operator
    y = plan.feature_map(var)
    spec = LayerNorm(plan.feature_map(x), y, float(call.attrs.epsilon))
    affine = [relax.const(pack_channels(constant_of(values), y)) for values in call.args[1:]]
    arguments = [emitter.blocked(x), *affine]
    return emitter.compute(var, layer_norm(spec), f"layer_norm_{composite.layer}", arguments)
