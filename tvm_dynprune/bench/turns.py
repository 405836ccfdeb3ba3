# SPDX-License-Identifier: Apache-2.0
"""Time engines in turns, each in a pinned process of its own.

Engines in one process disturb each other's thread pools, and a machine's clock moves while a
benchmark runs: so every input is timed on all engines before the next input's turn.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_dynprune.errors import DynpruneError

WARM_UP = 3


class EngineError(DynpruneError):
    """A process that runs an engine has ended."""


@dataclass(frozen=True)
class Engine:
    """A function of an artifact under a name, and its thresholds (none: the artifact's own)."""

    name: str
    artifact: Path
    function: str = "main"
    thresholds: tuple[float, ...] = ()


def measure_in_turns(
    engines: Sequence[Engine],
    images: np.ndarray,
    batch: int,
    *,
    threads: int = 1,
    repeat: int = 3,
    rounds: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """Time every engine on every input.

    Parameters
    ----------
    images
        (N, C, H, W) float32, N a multiple of `batch`.
    repeat
        Measurements of one input in a row, after one that does not count.
    rounds
        How often all inputs are gone through.
    advance
        Called after each input.

    Returns
    -------
    dict
        Engine name → (inputs, rounds * repeat) latencies in ms.

    Raises
    ------
    EngineError
        A process died; the message has its last words.
    """
    count = len(images) // batch
    results: dict[str, list[list[float]]] = {e.name: [[] for _ in range(count)] for e in engines}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, images, allow_pickle=False)
        workers = [_Worker(engine, path, threads) for engine in engines]
        try:
            for worker in workers:
                worker.time(0, WARM_UP)
            for _ in range(rounds):
                for index in range(count):
                    for worker in workers:
                        times = worker.time(index, repeat + 1)
                        results[worker.engine.name][index] += times[1:]
                    advance()
        finally:
            for worker in workers:
                worker.close()
    return {name: np.array(times) for name, times in results.items()}


class _Worker:
    def __init__(self, engine: Engine, images: Path, threads: int) -> None:
        self.engine = engine
        thresholds = json.dumps(engine.thresholds)
        arguments = [str(engine.artifact), str(images), engine.function, str(threads), thresholds]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tvm_dynprune.bench.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TVM_NUM_THREADS": str(threads)},
            preexec_fn=lambda: pin(threads),
        )

    def time(self, index: int, repeat: int) -> list[float]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"index": index, "repeat": repeat}) + "\n")
            stdin.flush()
            return json.loads(stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            words = self.process.communicate()[1].strip().splitlines() or ["no message"]
            raise EngineError(f"engine {self.engine.name} ended: {words[-1]}") from None

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def pin(threads: int) -> None:
    """Bind this process to as many cores as it has threads, the last and usually quietest ones."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-threads:])
