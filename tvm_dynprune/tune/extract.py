# SPDX-License-Identifier: Apache-2.0
"""From a network whose kernels are chosen to the tasks of tuning it."""

from collections.abc import Sequence

import numpy as np
import tvm

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.workload import workload_of
from tvm_dynprune.passes.choose_algorithm import fits_cache
from tvm_dynprune.passes.conv2d_spec import is_tunable, kernel_target, module_specs
from tvm_dynprune.runtime.calibration import Calibration
from tvm_dynprune.soc import Soc
from tvm_dynprune.tune.task import TuningTask, representatives


def extract_tasks(
    chosen: tvm.IRModule,
    soc: Soc,
    calibration: Calibration | None,
    functions: Sequence[str] = ("main",),
) -> list[TuningTask]:
    """The kernels to tune, each once, those that compute most first.

    Parameters
    ----------
    chosen
        What `pipeline.choose` returned.
    soc
        Where the network will run.
    calibration
        What gates leave open; None stands for everything.
    functions
        Of the network: ``main``, and ``dense`` for the one without gates.
    """
    found: dict[str, list[tuple[str, Conv2d]]] = {}
    for composite, spec in module_specs(chosen, kernel_target(soc), functions):
        if is_tunable(spec):
            found.setdefault(workload_of(spec), []).append((composite.layer, spec))
    cached = fits_cache(chosen, soc.cache_kib)
    tasks = []
    for layers in found.values():
        spec = layers[0][1]
        sets = [_open_sets(layer, spec, calibration) for layer, _ in layers]
        names = tuple(layer for layer, _ in layers)
        tasks.append(TuningTask(spec, names, representatives(spec, sets), cached))
    return sorted(tasks, key=lambda task: -task.macs * len(task.layers))


def _open_sets(
    layer: str, spec: Conv2d, calibration: Calibration | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    everything = np.ones((1, spec.x.channels), bool), np.ones((1, spec.y.channels), bool)
    if calibration is None or not (spec.open_in or spec.visit != "all"):
        return everything
    return calibration.open_sets(layer)
