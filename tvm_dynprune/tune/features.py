# SPDX-License-Identifier: Apache-2.0
"""What the cost model sees of a candidate."""

from dataclasses import replace
from math import log2, prod
from typing import Any

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.tiling import cut_evenly, tiles
from tvm_dynprune.kernels.winograd import Winograd
from tvm_dynprune.tune.space import schedule_of, task_of
from tvm_dynprune.tune.task import TuningTask


@derived_object
class ScheduleFeatures(ms.feature_extractor.PyFeatureExtractor):
    """One row per candidate: its work, how it fits the registers, and what it holds at a time.

    TVM's own features are of loops, of which a candidate has none before it is built.
    """

    def extract_from(
        self, context: ms.TuneContext, candidates: list[ms.MeasureCandidate]
    ) -> list[tvm.runtime.Tensor]:
        """A tensor (1, features) float64 for each."""
        del context  # a candidate says it all
        rows = [features(task_of(c.sch.mod), schedule_of(c.sch.mod)) for c in candidates]
        return [tvm.runtime.tensor(np.array([row], "float64")) for row in rows]


def features(task: TuningTask, schedule: Schedule) -> list[float]:
    """The row of one candidate; sizes are logarithms."""
    spec = task.spec
    own = _direct(spec, schedule) if schedule.algorithm == "direct" else _winograd(spec, schedule)
    kernel_work = [task.macs, spec.x.channels, spec.y.channels, spec.y.height * spec.y.width]
    kinds = ("direct", "winograd_2", "winograd_4")
    return [
        *(log2(max(value, 1)) for value in kernel_work),
        task.open_fraction,
        float(prod(spec.kernel)),
        float(task.weights_cached),
        *(float(schedule.algorithm == kind) for kind in kinds),
        float(schedule.quick_weights),
        *own,
    ]


def _direct(spec: Conv2d, schedule: Schedule) -> list[float]:
    """Accumulators, height and width of a tile; steps; pixels per step; nothing of Winograd's."""
    tile: Any = schedule.tile or (1, 1)
    cut = tiles(spec.y.height, spec.y.width, tile)
    steps = sum(one.row_count * one.column_count for one in cut)
    pixels = spec.y.height * spec.y.width
    spill = max(0, tile[0] * tile[1] - spec.sums)
    return [tile[0] * tile[1], tile[0], tile[1], log2(steps), pixels / steps, spill, 0.0, 0.0]


def _winograd(spec: Conv2d, schedule: Schedule) -> list[float]:
    """Accumulators at most; strip and its rows; steps and tiles per step; channels at once."""
    plane = Winograd(replace(spec, schedule=schedule), int(schedule.algorithm[-1]))
    tiles = plane.strip_rows * plane.columns
    sums = schedule.sums or 1
    steps = sum(count for *_, count in cut_evenly(tiles, sums))
    spill = max(0, sums - spec.sums)
    transformed = float(plane.packs_transformed)
    at_once = float(schedule.channels_at_once)
    return [sums, plane.strip_rows, tiles, log2(steps), tiles / steps, spill, at_once, transformed]
