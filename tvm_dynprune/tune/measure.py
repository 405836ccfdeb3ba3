# SPDX-License-Identifier: Apache-2.0
"""Building and timing one candidate: what runs in the worker processes, here or on a device.

Workers import this module and nothing of MetaSchedule, whose tensor intrinsics take 12 s to load.
"""

import json
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import rpc

from tvm_dynprune.device.linker import link_library
from tvm_dynprune.errors import DeviceError
from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.convolution import Convolution
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.tir_pipeline import TIR_PIPELINE
from tvm_dynprune.tune.arguments import Calls, arguments_of, weights_of
from tvm_dynprune.tune.task import TuningTask

LIBRARY = "library.so"
REQUEST = "request.json"
ROUNDS = 3
RUNS = 5  # of each open list and round, at least
_ROUND_MS = 4.0  # likewise
FLUSH_BYTES = 16 << 20  # written between runs on a device: more than its caches hold
SESSION_S = 60  # that a device may take for a trial
DEVICE_LOST = "device: "  # how a failure begins that is not the kernel's


def start_worker(cores: list[int]) -> None:
    """Bind a worker to the cores that it may use; who is told to stop is its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TVM_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def build_candidate(task: str, schedule: str, target: dict[str, Any], folder: str) -> str:
    """Compile a task's kernels by a schedule, both JSON, into `folder`; returns `folder`."""
    spec = replace(TuningTask.from_json(task).spec, schedule=Schedule.from_json(schedule))
    library = tvm.compile(
        kernels_of(spec), target=tvm.target.Target(target), tir_pipeline=TIR_PIPELINE
    )
    triple = str(target["mtriple"])
    here = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
    linker = None if triple.startswith(here) else link_library(triple)
    library.export_library(str(Path(folder) / LIBRARY), fcompile=linker)
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


def run_here(folder: str) -> list[list[float]]:
    """Time what `build_candidate` built: seconds of each of the task's inputs, in `ROUNDS` rounds.

    Each run is timed on its own: weights that are not cached come from another copy each time.
    """
    task, spec = _request(folder)
    library: Any = tvm.runtime.load_module(str(Path(folder) / LIBRARY))
    weights = cycle(weights_of(spec, tvm.runtime.tensor, copies=not task.weights_cached))
    kernel, is_first = library["kernel"], Convolution(spec).first is not None
    first = library["first"] if is_first else None

    def run_s(calls: Calls) -> float:
        arguments = list(calls.kernel(next(weights)))
        started = time.perf_counter()
        if first is not None and calls.first is not None:
            first(*calls.first)
        for each in arguments:
            kernel(*each)
        return time.perf_counter() - started

    runs = [arguments_of(spec, lists, tvm.runtime.tensor) for lists in task.inputs]
    for calls in runs:
        run_s(calls)  # what is done once, and what was not in the caches yet
    return [[_median_s(partial(run_s, calls)) for calls in runs] for _ in range(ROUNDS)]


def _median_s(run_s: Callable[[], float]) -> float:
    """Median time of one run."""
    samples: list[float] = []
    while len(samples) < RUNS or sum(samples) < _ROUND_MS / 1e3:
        samples += [run_s() for _ in range(RUNS)]
    return float(np.median(samples))


def run_remote(folder: str, tracker: tuple[str, int], key: str) -> list[list[float]]:
    """The same on the next free device that a tracker has under a key.

    A device whose clock counts instructions runs each kernel once: its count is exact, and is
    returned in billions. Branches of a conditional take as long as each other.

    Raises
    ------
    DeviceError
        There was no device, or it was lost; another one may do.
    """
    task, spec = _request(folder)
    with connect_device(tracker, key) as session:
        counts = _info(session).get("clock") == "instructions"
        session.upload(str(Path(folder) / LIBRARY), LIBRARY)
        library, put = session.load_module(LIBRARY), partial(_put, session.cpu(0))
        rounds, runs = (1, 1) if counts else (ROUNDS, RUNS)
        flush = 0 if task.weights_cached or counts else FLUSH_BYTES
        (weight,) = weights_of(spec, put, copies=False)

        def rounds_s(name: str, arguments: list[Any]) -> np.ndarray:
            timer = library.time_evaluator(
                name, session.cpu(0), number=1, repeat=rounds * runs, cache_flush_bytes=flush
            )
            return np.median(np.reshape(timer(*arguments).results, (rounds, runs)), axis=1)

        seconds = np.zeros((len(task.inputs), rounds))
        for i, lists in enumerate(task.inputs):
            calls = arguments_of(spec, lists, put)
            if calls.first is not None:
                seconds[i] += rounds_s("first", calls.first)
            if each := list(calls.kernel(weight)):
                seconds[i] += len(each) * rounds_s("kernel", each[0])
        return seconds.T.tolist()


def describe_device(tracker: tuple[str, int], key: str) -> dict[str, Any]:
    """What one of the devices under a key says of itself; nothing where its server is TVM's own.

    Raises
    ------
    DeviceError
        There is no tracker, or no device.
    """
    with connect_device(tracker, key) as session:
        return _info(session)


@contextmanager
def connect_device(tracker: tuple[str, int], key: str) -> Iterator[rpc.RPCSession]:
    """Yield a session with the next free device."""
    try:
        session = rpc.connect_tracker(*tracker).request(key, session_timeout=SESSION_S, max_retry=1)
    except Exception as error:
        raise DeviceError(f"{DEVICE_LOST}{last_line(error)}") from None
    try:
        yield session
    except Exception as error:
        if _is_lost(error):
            raise DeviceError(f"{DEVICE_LOST}{last_line(error)}") from None
        raise
    finally:
        with suppress(Exception):  # lost already
            session._sess.get_function("CloseRPCConnection")()


def _is_lost(error: Exception) -> bool:
    """Whether it is the connection's fault, and not the kernel's."""
    signs = ("RPCCode::kReturn", "kShutdown", "Broken pipe", "Connection reset", "timed out")
    return isinstance(error, OSError) or any(sign in str(error) for sign in signs)


def _info(session: rpc.RPCSession) -> dict[str, Any]:
    try:
        return json.loads(session.get_function("dynprune.device_info")())
    except AttributeError:
        return {}


def last_line(error: BaseException) -> str:
    """The line of what TVM raised that says what happened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _put(place: Any, array: np.ndarray) -> tvm.runtime.Tensor:
    return tvm.runtime.tensor(array, place)


def _request(folder: str) -> tuple[TuningTask, Conv2d]:
    request = json.loads((Path(folder) / REQUEST).read_text(encoding="utf-8"))
    task = TuningTask.from_json(request["task"])
    return task, replace(task.spec, schedule=Schedule.from_json(request["schedule"]))
