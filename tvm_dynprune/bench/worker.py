# SPDX-License-Identifier: Apache-2.0
"""One engine in a process of its own: reads requests from stdin, answers on stdout, in JSON lines.

A request ``{"index": i, "repeat": r}`` is answered with r latencies, in ms, of input i.
"""

import json
import sys

import numpy as np

from tvm_dynprune.runtime import Artifact, Session


def main(artifact: str, inputs: str, function: str, threads: str, thresholds: str) -> None:
    """Serve the requests for one function of one artifact until stdin ends."""
    session = Session(Artifact.load(artifact), threads=int(threads))
    if values := json.loads(thresholds):
        session.set_threshold_values(values)
    images = np.load(inputs, mmap_mode="r", allow_pickle=False)
    batch = session.manifest.input_shape[0]
    for line in sys.stdin:
        request = json.loads(line)
        start = request["index"] * batch
        x = np.ascontiguousarray(images[start : start + batch])
        times = session.time_ms(x, function=function, repeat=request["repeat"])
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
