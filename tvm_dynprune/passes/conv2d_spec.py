# SPDX-License-Identifier: Apache-2.0
"""From a composite convolution to the `Conv2d` that says what its kernel computes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd

import tvm
from tvm.relax import Var

from tvm_dynprune.kernels.activation import Activation, Formula
from tvm_dynprune.kernels.channel_groups import groups_or_run
from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.passes.activations import parse_activation
from tvm_dynprune.passes.composite import CompositeCall
from tvm_dynprune.passes.dataflow import shape_of
from tvm_dynprune.passes.layout_plan import LayoutPlan
from tvm_dynprune.soc import Soc


@dataclass(frozen=True)
class KernelTarget:
    """What kernels depend on of a SoC; see `Soc` and `Conv2d`."""

    lanes: int
    registers: int
    by_lane: bool = False
    permutes: str = ""

    @property
    def transform_registers(self) -> int:
        """Those in which Winograd's weights may be transformed, or 0."""
        return 0 if self.by_lane else self.registers


def kernel_target(soc: Soc) -> KernelTarget:
    """That of a SoC."""
    return KernelTarget(soc.lanes, soc.vector_registers, soc.multiplies_by_lane, soc.permutes)


def module_specs(
    mod: tvm.IRModule, target: KernelTarget, names: Sequence[str] | None = None
) -> Iterator[tuple[CompositeCall, Conv2d]]:
    """The convolutions of a module's entry functions, or of those of `names`, in order.

    Those of gates are left out: they are next to nothing, and merged with others.
    """
    functions = dict(mod.functions_items())
    for global_var, func in functions.items():
        is_entry = isinstance(func, tvm.relax.Function) and "global_symbol" in (func.attrs or {})
        if is_entry and (names is None or global_var.name_hint in names):
            plan = LayoutPlan(func, functions, target.lanes)
            for var, composite in plan.composites.items():
                if composite.kind == "conv2d" and not plan.decides(var):
                    yield composite, conv2d_spec(plan, var, composite, target)


def is_tunable(spec: Conv2d) -> bool:
    """Whether its kernel may be tuned: not the branches of conditionals, nor over squares."""
    return spec.visit != "group" and spec.schedule.algorithm != "winograd_strided"


def conv2d_spec(
    plan: LayoutPlan, var: Var, composite: CompositeCall, target: KernelTarget
) -> Conv2d:
    """What the kernel of the convolution bound to `var` computes, and how.

    Its `visit` is "group" where it is lowered to conditionals. Needs ChooseAlgorithm.
    """
    attrs, arguments = composite.operator.attrs, composite.arguments
    before, after = activations_around(composite.epilogue)
    residual = arguments.get("residual")
    spec = Conv2d(
        x=plan.feature_map(arguments["x"]),
        y=plan.feature_map(var),
        kernel=shape_of(arguments["weight"])[2:],
        stride=tuple(int(s) for s in attrs.strides),
        pad=tuple(int(p) for p in attrs.padding)[:2],
        dilation=tuple(int(d) for d in attrs.dilation),
        bias="bias" in arguments,
        before=before,
        scale="scale" in arguments,
        residual=None if residual is None else plan.feature_map(residual),
        after=after,
        schedule=_schedule(composite),
        registers=target.registers,
        by_lane=target.by_lane,
        permutes=target.permutes,
    )
    if composite.kind == "grouped_conv2d":
        sizes = int(attrs.groups), spec.x.channels, spec.y.channels, spec.y.lanes
        groups, run = groups_or_run(*sizes)
        spec = replace(spec, groups=groups, run=run)
    lowering = str(composite.attribute("lowering"))
    if lowering == "indexed":
        return _indexed(plan, var, composite, spec)
    if lowering == "if" and composite.attribute("block"):
        exact = spec.y.batch == 1 and composite.attribute("binary_scale", 0)
        return replace(spec, scale=spec.scale and not exact)
    if lowering == "if" and "open_out" in arguments:
        return _conditional(composite, spec)
    return spec


def activations_around(epilogue: list[str]) -> tuple[Activation | Formula | None, ...]:
    """The activations before and after scale and residual."""
    before = after = None
    seen_middle = False
    for step in epilogue:
        if step in ("scale", "residual"):
            seen_middle = True
        elif step != "bias" and seen_middle:
            after = parse_activation(step)
        elif step != "bias":
            before = parse_activation(step)
    return before, after


def _schedule(composite: CompositeCall) -> Schedule:
    """What a log says, or else the chosen algorithm as it is."""
    tuned = str(composite.attribute("schedule", ""))
    if tuned:
        return Schedule.from_json(tuned)
    algorithm = str(composite.attribute("algorithm")).removesuffix("_in")
    quick = bool(composite.attribute("weights_quick", 0))
    return Schedule(algorithm, quick_weights=quick)


def _indexed(plan: LayoutPlan, var: Var, composite: CompositeCall, spec: Conv2d) -> Conv2d:
    lanes = spec.y.lanes
    if "open_in" in composite.arguments:
        spec = replace(spec, open_in=True, unit_in=int(composite.attribute("open_unit_in")))
    inputs_only = str(composite.attribute("algorithm")).endswith("_in")
    if "open_out" in composite.arguments and not inputs_only:
        by_block = gcd(int(composite.attribute("open_unit")), lanes) == lanes
        fill = spec.residual is not None or plan.fills(var)
        # Channels outside the list are not computed, so a mask of zeros and ones has done its work.
        exact = composite.attribute("binary_scale", 0)
        visit = "blocks" if by_block else "gather"
        if composite.kind == "grouped_conv2d" and not by_block:
            visit, exact = "blocks", False
        scale = spec.scale and not exact
        spec = replace(spec, visit=visit, fill=fill, scale=scale)
    return spec


def _conditional(composite: CompositeCall, spec: Conv2d) -> Conv2d:
    unit, lanes = int(composite.attribute("open_unit")), spec.y.lanes
    group_blocks = unit // lanes if unit % lanes == 0 else 1
    # A branch computes a whole group for the whole batch; where only a part is open, the mask acts.
    exact = unit % lanes == 0 and spec.y.batch == 1 and composite.attribute("binary_scale", 0)
    return replace(spec, visit="group", group_blocks=group_blocks, scale=spec.scale and not exact)
