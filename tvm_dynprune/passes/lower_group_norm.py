# SPDX-License-Identifier: Apache-2.0
"""Lowering of group and instance normalisation; see `LowerKernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import relax
from tvm.relax import Var

from tvm_dynprune.kernels.conv2d import pack_channels, pack_factors
from tvm_dynprune.kernels.group_norm import GroupNorm, group_norm
from tvm_dynprune.passes.composite import CompositeCall
from tvm_dynprune.passes.conv2d_spec import activations_around
from tvm_dynprune.passes.dataflow import constant_of

if TYPE_CHECKING:
    from tvm_dynprune.passes.lower_kernels import KernelEmitter


def lower_group_norm(emitter: KernelEmitter, var: Var, composite: CompositeCall) -> Var:
    """Emit a normalisation with its epilogue; returns its blocked result."""
    plan, given, call = emitter.plan, composite.arguments, composite.operator
    y, residual = plan.feature_map(var), given.get("residual")
    before, after = activations_around(composite.epilogue)
    spec = GroupNorm(
        x=plan.feature_map(given["x"]),
        y=y,
        groups=int(call.attrs.num_groups),
        epsilon=float(call.attrs.epsilon),
        before=before,
        residual=None if residual is None else plan.feature_map(residual),
        after=after,
    )
    rows = [pack_channels(constant_of(values), y) for values in call.args[1:]]
    rows += [pack_factors(composite.factors, y)] if spec.factors else []
    arguments = [emitter.blocked(given["x"]), *map(relax.const, rows)]
    if residual is not None:
        arguments.append(emitter.blocked(residual))
    return emitter.compute(var, group_norm(spec), f"group_norm_{composite.layer}", arguments)
