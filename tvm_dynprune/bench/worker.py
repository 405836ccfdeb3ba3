# SPDX-License-Identifier: Apache-2.0
"""One engine in a process of its own: reads requests from stdin, answers on stdout, in JSON lines.

``{"index": i, "repeat": r}`` is answered with r latencies, in ms, of input i; ``{"output": path}``
with true, once the output of the input before is written there; ``{"memory": 0}`` with the peak
memory in MiB that the process has used since before it loaded the engine.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from tvm_dynprune.bench.engines import engine_module


def main(specification: str, inputs: str) -> None:
    """Serve the requests for one engine until stdin ends."""
    spec = json.loads(specification)
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
            answer = [_timed_ms(engine) for _ in range(request["repeat"])]
        print(json.dumps(answer), flush=True)


def _timed_ms(engine) -> float:
    started = time.perf_counter()
    engine.infer()
    return (time.perf_counter() - started) * 1e3


def _memory_mib(field: str) -> float:
    """``VmRSS``, or its peak ``VmHWM``; getrusage's peak would be that of the parent, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


if __name__ == "__main__":
    main(*sys.argv[1:])
