# SPDX-License-Identifier: Apache-2.0
"""One engine in a process of its own: reads requests from stdin, answers on stdout, in JSON lines.

``{"index": i, "repeat": r}`` is answered with r latencies of input i, in ms, or in instructions if
the specification names the ``clock`` that an emulator counts them in; ``{"output": path}`` with
true, once the output of the input before is written there; ``{"memory": 0}`` with the peak memory
in MiB that the process has used since before it loaded the engine.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tvm_dynprune.bench.engines import engine_module


def main(specification: str, inputs: str) -> None:
    """Serve the requests for one engine until stdin ends."""
    spec = json.loads(specification)
    clock = _clock(spec.get("clock"))
    before = _memory_mib("VmRSS")
    engine = engine_module(spec["kind"]).load(Path(spec["model"]), spec["threads"], spec["options"])
    images = np.load(inputs, mmap_mode="r", allow_pickle=False)
    for line in sys.stdin:
        request = json.loads(line)
        if "output" in request:
            np.save(request["output"], engine.output(), allow_pickle=False)
            answer: object = True
        elif "memory" in request:
            answer = _memory_mib("VmHWM") - before
        else:
            start = request["index"] * spec["batch"]
            engine.set_input(np.array(images[start : start + spec["batch"]]))
            answer = [_timed(engine, clock) for _ in range(request["repeat"])]
        print(json.dumps(answer), flush=True)


def _clock(counter: str | None) -> Callable[[], float]:
    """Milliseconds, or the instructions that `EmulatedDevice`'s plugin counts in a file."""
    if counter is None:
        return lambda: time.perf_counter() * 1e3
    count = np.memmap(counter, np.uint64, "r", shape=(1,))
    return lambda: int(count[0])


def _timed(engine, clock: Callable[[], float]) -> float:
    started = clock()
    engine.infer()
    return clock() - started


def _memory_mib(field: str) -> float:
    """``VmRSS``, or its peak ``VmHWM``; getrusage's peak would be that of the parent, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


if __name__ == "__main__":
    main(*sys.argv[1:])
