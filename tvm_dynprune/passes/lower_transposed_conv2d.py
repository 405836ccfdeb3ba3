# SPDX-License-Identifier: Apache-2.0
"""Lowering of transposed convolutions; see `LowerKernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tvm import relax
from tvm.relax import Var

from tvm_dynprune.kernels.conv2d import Conv2d, pack_channels, pack_factors
from tvm_dynprune.kernels.convolution import Convolution
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.transposed_conv2d import (
    PhaseGroup,
    interleave_phases,
    phase_channels,
    phase_groups,
    phase_weight,
)
from tvm_dynprune.passes.activations import parse_activation
from tvm_dynprune.passes.composite import CompositeCall, geometry_of
from tvm_dynprune.passes.dataflow import constant_of
from tvm_dynprune.passes.layout_plan import tensor

if TYPE_CHECKING:
    from tvm_dynprune.passes.lower_kernels import KernelEmitter


def lower_transposed_conv2d(emitter: KernelEmitter, var: Var, composite: CompositeCall) -> Var:
    """Emit a transposed convolution; returns its blocked result."""
    kernel, stride, pad = geometry_of(composite.operator)
    groups = phase_groups(kernel, stride, pad)
    parts = [_convolution(emitter, var, composite, group) for group in groups]
    y = emitter.plan.feature_map(var)
    results, sizes = [part for part, _ in parts], [size for _, size in parts]
    interleave = interleave_phases(groups, sizes, y, stride)
    return emitter.compute(var, interleave, f"interleave_{composite.layer}", results)


def _convolution(
    emitter: KernelEmitter, var: Var, composite: CompositeCall, group: PhaseGroup
) -> tuple[Var, FeatureMap]:
    """Emit the convolution of a group of phases: its result and the layout of that."""
    given, y, lanes = composite.arguments, emitter.plan.feature_map(var), emitter.plan.lanes
    each = phase_channels(y.channels, lanes)
    _, stride, pad = geometry_of(composite.operator)
    steps = [step for step in composite.epilogue if step != "bias"]
    times, plane = len(group.phases), (-(-y.height // stride[0]), -(-y.width // stride[1]))
    size = FeatureMap(y.batch, times * each, *plane, lanes)
    spec = Conv2d(
        x=emitter.plan.feature_map(given["x"]),
        y=size,
        kernel=(group.rows.taps, group.columns.taps),
        stride=(1, 1),
        pad=(group.rows.pad, group.columns.pad),
        dilation=(1, 1),
        bias="bias" in given,
        before=parse_activation(steps[0]) if steps else None,
        registers=emitter.target.registers,
        by_lane=emitter.target.by_lane,
    )
    convolution = Convolution(spec)
    weight = phase_weight(constant_of(given["weight"]), group, stride, pad, lanes)
    arguments = [emitter.blocked(given["x"]), relax.const(convolution.pack(weight))]

    def repeated(values: np.ndarray) -> np.ndarray:
        return np.tile(pack_channels(values, y)[:each], times)

    if spec.bias:
        arguments.append(relax.const(pack_channels(repeated(constant_of(given["bias"])), size)))
    if spec.factors:
        rows = [repeated(row) for row in composite.factors]
        arguments.append(relax.const(pack_factors(rows, size)))
    name = f"transposed_conv2d_{composite.layer}"
    return emitter.call(convolution.kernel, name, arguments, [tensor(size)]), size
