# SPDX-License-Identifier: Apache-2.0
"""Building and timing one candidate: what runs in the worker processes, here or on a device.

Workers import this module and nothing of MetaSchedule, whose tensor intrinsics take 12 s to load.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.convolution import Convolution
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.tune.task import OpenLists, TuningTask

LIBRARY = "library.so"
REQUEST = "request.json"
ROUNDS = 3
_ROUND_MS = 4.0  # of each open list, at least
_LEAST_RUNS = 5
_MOST_COPIES = 64
_COPIES_MIB = 48  # of weights that are gone through in turns: more than last-level caches hold


def start_worker(cores: list[int]) -> None:
    """Bind a worker to the cores that it may use; who is told to stop is its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TVM_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def build_candidate(task: str, schedule: str, target: dict[str, Any], folder: str) -> str:
    """Compile a task's kernels by a schedule, both JSON, into `folder`; returns `folder`."""
    spec = replace(TuningTask.from_json(task).spec, schedule=Schedule.from_json(schedule))
    module = kernels_of(spec)
    library = tvm.compile(module, target=tvm.target.Target(target))
    library.export_library(str(Path(folder) / LIBRARY))
    request = {"task": task, "schedule": schedule}
    (Path(folder) / REQUEST).write_text(json.dumps(request), encoding="utf-8")
    return folder


def kernels_of(spec: Conv2d) -> tvm.IRModule:
    """The kernels of a convolution by name: ``first``, where there are two, and ``kernel``."""
    convolution = Convolution(spec)
    kernels = {"kernel": convolution.kernel, "first": convolution.first}
    return tvm.IRModule(
        {n: k.with_attr("global_symbol", n) for n, k in kernels.items() if k is not None}
    )


def run_candidate(folder: str) -> list[float]:
    """Time what `build_candidate` built: expected seconds over the task's inputs, `ROUNDS` times.

    Each run is timed on its own: weights that are not cached come from another copy each time.
    """
    request = json.loads((Path(folder) / REQUEST).read_text(encoding="utf-8"))
    task = TuningTask.from_json(request["task"])
    spec = replace(task.spec, schedule=Schedule.from_json(request["schedule"]))
    library = tvm.runtime.load_module(str(Path(folder) / LIBRARY))
    runs = [
        (lists.share, cycle(_calls(library, spec, lists, task.weights_cached)))
        for lists in task.inputs
    ]
    for _, calls in runs:
        next(calls)()  # what is done once, and what was not in the caches yet
    return [sum(share * _median_s(calls) for share, calls in runs) for _ in range(ROUNDS)]


def _median_s(calls: Iterator[Callable[[], None]]) -> float:
    """Median time of one call."""
    samples: list[float] = []
    while len(samples) < _LEAST_RUNS or sum(samples) < _ROUND_MS / 1e3:
        for call in islice(calls, _LEAST_RUNS):
            started = time.perf_counter()
            call()
            samples.append(time.perf_counter() - started)
    return float(np.median(samples))


def _calls(library: Any, spec: Conv2d, lists: OpenLists, cached: bool) -> list[Callable[[], None]]:
    """Calls that run the kernels once; each has weights of its own, if they are not `cached`."""
    convolution, rng = Convolution(spec), np.random.default_rng(0)
    x = _random(rng, spec.x.shape)
    y = tvm.runtime.tensor(np.zeros(spec.y.shape, "float32"))
    lists_in = [] if lists.open_in is None else _list(lists.open_in, _unit_in(spec), spec.x)
    lists_out = [] if lists.open_out is None else _list(lists.open_out, _unit_out(spec), spec.y)
    extra = _epilogue(rng, spec)
    size_mib = 4 * int(np.prod(convolution.weight_shape)) / 2**20
    copies = 1 if cached else min(_MOST_COPIES, int(_COPIES_MIB / size_mib) + 1)
    kernel = library["kernel"]
    before, source = [], x
    if convolution.winograd is not None:
        u = tvm.runtime.tensor(np.zeros(convolution.winograd.transformed_shape, "float32"))
        by_block = [] if lists.open_in is None else _list(lists.open_in, spec.x.lanes, spec.x)
        before, source = [partial(library["first"], x, *by_block, u)], u

    def call_with(weight: tvm.runtime.Tensor) -> Callable[[], None]:
        arguments = (source, weight, *extra, *lists_in, *lists_out, y)

        def call() -> None:
            for first in before:
                first()
            kernel(*arguments)

        return call

    weight = rng.standard_normal(convolution.weight_shape, "float32")
    return [call_with(tvm.runtime.tensor(weight)) for _ in range(copies)]


def _epilogue(rng: np.random.Generator, spec: Conv2d) -> list[tvm.runtime.Tensor]:
    """Bias, scale and residual, as `Conv2dBuilder` takes them."""
    y, extra = spec.y, []
    if spec.bias:
        extra.append(_random(rng, (y.blocks * y.lanes,)))
    if spec.scale:
        extra.append(_random(rng, (y.batch, y.channels, 1, 1)))
    if spec.residual is not None:
        extra.append(_random(rng, spec.residual.shape))
    return extra


def _unit_in(spec: Conv2d) -> int:
    return spec.x.lanes if spec.by_input_block else 1


def _unit_out(spec: Conv2d) -> int:
    return spec.y.lanes if spec.visit == "blocks" else 1


def _list(channels: list[int], unit: int, size: Any) -> list[tvm.runtime.Tensor]:
    """List and count of blocks of `unit` channels, as `open_list` makes them, for each sample."""
    is_open = np.zeros(-(-size.channels // unit), bool)
    is_open[np.array(channels, int) // unit] = True
    items = np.concatenate([np.flatnonzero(is_open), np.flatnonzero(~is_open)]).astype("int32")
    count = np.full(size.batch, is_open.sum(), "int32")
    return [tvm.runtime.tensor(np.tile(items, (size.batch, 1))), tvm.runtime.tensor(count)]


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> tvm.runtime.Tensor:
    return tvm.runtime.tensor(rng.standard_normal(shape, "float32"))
