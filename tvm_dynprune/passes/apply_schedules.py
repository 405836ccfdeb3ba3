# SPDX-License-Identifier: Apache-2.0
"""ApplySchedules: give each convolution what tuning found for it.

A kernel is looked up by what it computes (`kernels.workload`); the schedule is set as attribute
``schedule``, and its algorithm as ``algorithm``. Where tuning also measured time against open
channels, calibration's open fractions may fall on the other side of a break-even than those that
were tuned for: then algorithm and ``lowering`` are those that `TunedKernel.choose` predicts to be
fastest. Predicted milliseconds stand in ``fitted``, for ``--explain``. A gated convolution that
computes everything takes what was found for the one without its gate, from which it differs by one
multiplication. Kernels that were not tuned stay as they are.
Needs ChooseAlgorithm before it; feeds LowerKernels.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tvm

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.tuned import TunedKernel
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.passes.composite import CompositeCall
from tvm_dynprune.passes.conv2d_spec import KernelTarget, is_tunable, module_specs


@tvm.transform.module_pass(opt_level=0, name="ApplySchedules")
class ApplySchedules:
    """Set `schedule` on the composite convolutions that were tuned.

    Parameters
    ----------
    target
        What kernels depend on of a SoC.
    tuned
        `workload_key` → what tuning found.
    open_products
        Layer name → mean of open_in * open_out over calibration inputs, between 0 and 1.
    """

    def __init__(
        self,
        target: KernelTarget,
        tuned: Mapping[str, TunedKernel],
        open_products: Mapping[str, float] | None = None,
    ) -> None:
        self.target, self.tuned = target, dict(tuned)
        self.open_products = dict(open_products or {})

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        functions = dict(mod.functions_items())
        for composite, spec in module_specs(mod, self.target):
            kernel = self._tuned(spec)
            if kernel is not None:
                attributes = self._attributes(kernel, composite, spec)
                functions[composite.global_var] = composite.func.with_attrs(attributes)
        return tvm.IRModule(functions, attrs=mod.attrs)

    def _tuned(self, spec: Conv2d) -> TunedKernel | None:
        if not is_tunable(spec):
            return None
        walks_lists = spec.open_in or spec.visit != "all"
        candidates = [spec] if walks_lists else [spec, replace(spec, scale=False)]
        keys = [workload_key(candidate) for candidate in candidates]
        return next((self.tuned[key] for key in keys if key in self.tuned), None)

    def _attributes(
        self, kernel: TunedKernel, composite: CompositeCall, spec: Conv2d
    ) -> dict[str, Any]:
        inputs_only = str(composite.attribute("algorithm")).endswith("_in")
        attributes: dict[str, Any] = {}
        schedule = kernel.schedule
        if kernel.costs and composite.layer in self.open_products:
            counts = open_channels(spec, self.open_products[composite.layer])
            lowering, schedule = kernel.choose(*counts)
            fitted = {
                f"{cost.lowering} {cost.schedule.algorithm}": cost.seconds(*counts) * 1e3
                for cost in kernel.costs
            }
            attributes |= {"lowering": lowering, "fitted": json.dumps(fitted)}
            inputs_only = inputs_only and lowering == "indexed"
        algorithm = schedule.algorithm + ("_in" if inputs_only else "")
        return attributes | {"algorithm": algorithm, "schedule": schedule.to_json()}


def open_channels(spec: Conv2d, product: float) -> tuple[float, float]:
    """Open input and output channels of a kernel, as many on each side as it skips by.

    `product` is the mean of open_in * open_out, as a fraction of all pairs.
    """
    gated = [spec.open_in, spec.visit != "all"]
    each = product ** (1 / max(1, sum(gated)))
    sizes = (spec.x.channels, spec.y.channels)
    open_in, open_out = (c * (each if g else 1.0) for c, g in zip(sizes, gated, strict=True))
    return open_in, open_out
