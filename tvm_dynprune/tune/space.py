# SPDX-License-Identifier: Apache-2.0
"""The schedules among which a convolution is tuned, as design spaces of MetaSchedule.

One space per algorithm, each a product of a few decisions. A candidate of MetaSchedule's is the
block ``conv2d`` that does nothing, annotated with the decisions that were sampled for it, and with
the options they are of, so that a record means the same when the spaces have changed; the builder
turns them into the kernel. So sampling, mutation, traces, replay and databases are MetaSchedule's
own, while the code is what `kernels` generates.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from tvm.ir import IRModule
from tvm.s_tir import Schedule as TvmSchedule
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.errors import LogError
from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.direct_sums import prefetches
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.tiling import cut_evenly, tile_size, tile_sizes, tiles_cost
from tvm_dynprune.kernels.winograd import Winograd, pieces
from tvm_dynprune.kernels.workload import workload_of
from tvm_dynprune.tune.task import TuningTask

Space = dict[str, list[Any]]  # decision → its options
BLOCK = "conv2d"
_TASK = "dynprune.task"
_DECISION = "dynprune."
_MOST_TILES = 14  # sizes of a direct convolution's accumulators


def schedule_spaces(spec: Conv2d) -> list[Space]:
    """What may be decided, one space or two for each algorithm that can compute `spec`.

    The product of a space's options is what it holds; decisions that are not named are left at
    their default. The compiler's own choice is in one of them.
    """
    spaces = _direct_spaces(spec)
    if can_winograd(spec):
        spaces += [space for m in (2, 4) for space in _winograd_spaces(spec, m)]
    return spaces


def can_winograd(spec: Conv2d) -> bool:
    """Whether F(m x m, 3 x 3) can compute it."""
    unit = (spec.kernel, spec.stride, spec.dilation) == ((3, 3), (1, 1), (1, 1))
    return unit and spec.pad[0] == spec.pad[1] and spec.x.channels % spec.y.lanes == 0


def _direct_spaces(spec: Conv2d) -> list[Space]:
    space: Space = {"algorithm": ["direct"], "tile": _tile_sizes(spec)}
    if prefetches(spec):
        space["quick_weights"] = [False, True]
    return [space]


def _tile_sizes(spec: Conv2d) -> list[tuple[int, int]]:
    """The rule's own size and those that promise most: many accumulators, few left-over pixels."""
    height, width = spec.y.height, spec.y.width
    sizes = tile_sizes(height, width, spec.sums + 2)

    def cost(size: tuple[int, int]) -> float:
        return tiles_cost(height, width, size)

    rule = tile_size(height, width, spec.sums)
    return [rule, *[size for size in sorted(sizes, key=cost) if size != rule][: _MOST_TILES - 1]]


def _winograd_spaces(spec: Conv2d, m: int) -> list[Space]:
    """One for each way in which weights may be packed."""
    ways: dict[bool, Space] = {}  # whether they are transformed → its space
    for quick in (False, True):
        plane = Winograd(replace(spec, schedule=Schedule(quick_weights=quick)), m)
        if plane.packs_transformed not in ways:
            ways[plane.packs_transformed] = _winograd_space(plane, quick)
    return list(ways.values())


def _winograd_space(plane: Winograd, quick: bool) -> Space:
    most = plane.conv.sums
    strips = {}  # how rows are cut → strip_tiles
    for tiles in (128, 32, 16, 64):
        strips[str(_strips(plane, tiles))] = tiles
    heights = {
        size * plane.columns for tiles in strips.values() for _, size, _ in _strips(plane, tiles)
    }
    sums = {}  # how their tiles are cut → sums
    for count in (most + 2, *(max(1, most * k // 7) for k in (2, 3, 4, 5, 6, 7))):
        sums[str([_cut(plane, size, count) for size in heights])] = count
    space: Space = {
        "algorithm": [f"winograd_{plane.m}"],
        "sums": sorted(sums.values()),
        "strip_tiles": sorted(strips.values()),
        "quick_weights": [quick],
    }
    return space if plane.packs_transformed else space | {"channels_at_once": [32, 64]}


def _cut(plane: Winograd, tiles: int, sums: int) -> list:
    """How tiles are cut into those that are summed together."""
    if plane.transforms_in_registers:
        return cut_evenly(tiles, plane.tiles_at_once)
    return pieces(tiles, plane.points, sums)


def _strips(plane: Winograd, tiles: int) -> list:
    """How rows of tiles are cut into strips."""
    schedule = replace(plane.conv.schedule, strip_tiles=tiles)
    strip_rows = replace(plane, conv=replace(plane.conv, schedule=schedule)).strip_rows
    return cut_evenly(plane.rows, strip_rows)


def workload_module(task: TuningTask) -> IRModule:
    """The module that stands for a task in MetaSchedule's databases."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_attr({"global_symbol": "main", "tirx.noalias": True, _TASK: task.to_json()})
            y = T.arg("y", T.buffer((1,), "float32"))
            with T.serial(0, 1) as i, T.sblock(BLOCK):
                T.axis.spatial((0, 1), i)
                T.reads()
                T.writes(y[0:1])
                T.evaluate(0)
    return IRModule({"main": builder.get()})


def design_spaces(schedule: TvmSchedule) -> list[TvmSchedule]:
    """A space of MetaSchedule's per algorithm: the function of a `ScheduleFn`."""
    spaces = schedule_spaces(task_of(schedule.mod).spec)
    return [_sampled(schedule.copy(), space) for space in spaces]


def candidate_of(task: TuningTask, schedule: Schedule) -> TvmSchedule:
    """The candidate that decides on `schedule`, or on what generates the same code.

    Raises
    ------
    ValueError
        It is in no space of the task's.
    """
    spec, chosen = task.spec, asdict(schedule)
    chosen["tile"] = schedule.tile or tile_size(spec.y.height, spec.y.width, spec.sums)
    chosen["sums"] = schedule.sums or spec.sums
    spaces = schedule_spaces(spec)
    same = [space for space in spaces if space["algorithm"] == [schedule.algorithm]]
    if not any(True in space.get("quick_weights", ()) for space in same):
        chosen["quick_weights"] = False  # it makes no difference
    for space in spaces:
        if all(chosen[name] in options for name, options in space.items()):
            decisions = {name: options.index(chosen[name]) for name, options in space.items()}
            return _sampled(TvmSchedule(workload_module(task)), space, decisions)
    raise ValueError(f"{schedule} is in no space of {workload_of(spec)}")


def _sampled(
    schedule: TvmSchedule, space: Space, decisions: Mapping[str, int] | None = None
) -> TvmSchedule:
    """Let MetaSchedule decide, or decide for it, where a space has more than one option."""
    block = schedule.get_sblock(BLOCK)
    for name, options in space.items():
        if len(options) > 1:
            count = len(options)
            decision = None if decisions is None else decisions[name]
            chances = [1 / count] * count
            index = schedule.sample_categorical(list(range(count)), chances, decision)
            schedule.annotate(block, _DECISION + name, index)
    schedule.annotate(block, _DECISION + "space", json.dumps(space))
    return schedule


def task_of(module: IRModule) -> TuningTask:
    """The task that a module of `workload_module`, or a candidate made of it, stands for."""
    return TuningTask.from_json(str(module["main"].attrs[_TASK]))


def schedule_of(candidate: IRModule) -> Schedule:
    """What a candidate decided.

    Raises
    ------
    LogError
        It is a record of a version that did not write down the options.
    """
    schedule = TvmSchedule(candidate)
    block: Any = schedule.get(schedule.get_sblock(BLOCK))
    annotations: dict[Any, Any] = dict(block.annotations)
    decided = {str(k).removeprefix(_DECISION): v for k, v in annotations.items()}
    space = json.loads(str(decided["space"]))
    if not isinstance(space, dict):
        raise LogError("tuning record of an older version of tvm-dynprune: tune again, from anew")
    chosen = {name: options[int(decided.get(name, 0))] for name, options in space.items()}
    return Schedule.from_json(json.dumps(chosen))


def own_choice(task: TuningTask) -> Schedule:
    """What the compiler chooses without a log, with every decision spelled out."""
    return schedule_of(candidate_of(task, task.spec.schedule).mod)
