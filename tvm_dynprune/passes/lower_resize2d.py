# SPDX-License-Identifier: Apache-2.0
"""Lowering of resized planes; see `LowerKernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import relax
from tvm.relax import Var

from tvm_dynprune.kernels.resize2d import Resize2d, resize2d
from tvm_dynprune.passes.composite import CompositeCall
from tvm_dynprune.passes.lower_window import open_blocks

if TYPE_CHECKING:
    from tvm_dynprune.passes.lower_kernels import KernelEmitter


def lower_resize2d(emitter: KernelEmitter, var: Var, composite: CompositeCall) -> Var:
    """Emit a resized plane; returns it in blocked layout."""
    attrs, plan, x = composite.operator.attrs, emitter.plan, composite.arguments["x"]
    lists = open_blocks(emitter, composite)
    spec = Resize2d(
        x=plan.feature_map(x),
        y=plan.feature_map(var),
        method=str(attrs.method),
        coordinates=str(attrs.coordinate_transformation_mode),
        rounding=str(attrs.rounding_method),
        listed=bool(lists),
        fill=plan.fills(var),
    )
    tables = [relax.const(table) for table in spec.tables]
    arguments = [emitter.blocked(x), *tables, *lists]
    return emitter.compute(var, resize2d(spec), f"resize2d_{composite.layer}", arguments)
