# SPDX-License-Identifier: Apache-2.0
"""ApplySchedules: give each convolution the schedule that tuning found for it.

A kernel is looked up by what it computes (`kernels.workload`); the schedule is set as attribute
``schedule``, and its algorithm as ``algorithm``. Kernels that were not tuned stay as they are.
Needs ChooseAlgorithm before it; feeds LowerKernels.
"""

from collections.abc import Mapping

import tvm

from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.passes.conv2d_spec import KernelTarget, is_tunable, module_specs


@tvm.transform.module_pass(opt_level=0, name="ApplySchedules")
class ApplySchedules:
    """Set `schedule` on the composite convolutions that were tuned.

    Parameters
    ----------
    target
        What kernels depend on of a SoC.
    schedules
        `workload_key` → its best schedule.
    """

    def __init__(self, target: KernelTarget, schedules: Mapping[str, Schedule]) -> None:
        self.target, self.schedules = target, dict(schedules)

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        functions = dict(mod.functions_items())
        for composite, spec in module_specs(mod, self.target):
            schedule = self.schedules.get(workload_key(spec)) if is_tunable(spec) else None
            if schedule is not None:
                inputs_only = str(composite.attribute("algorithm")).endswith("_in")
                tuned = {
                    "algorithm": schedule.algorithm + ("_in" if inputs_only else ""),
                    "schedule": schedule.to_json(),
                }
                functions[composite.global_var] = composite.func.with_attrs(tuned)
        return tvm.IRModule(functions, attrs=mod.attrs)
