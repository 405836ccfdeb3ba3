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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.errors import DynpruneError

WARM_UP = 3


class EngineError(DynpruneError):
    """A process that runs an engine has ended."""


@dataclass(frozen=True)
class Engine:
    """What one process runs: an engine of `bench.engines`, the file that it loads, its options."""

    name: str
    kind: str
    model: Path
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What was measured of one engine."""

    times_ms: np.ndarray  # (inputs, rounds * repeat)
    outputs: np.ndarray  # (N, classes), of the first round
    peak_memory_mib: float


def our_engine(
    name: str, artifact: Path, function: str = "main", thresholds: Iterable[float] = ()
) -> Engine:
    """A function of an artifact, and its thresholds (none: the artifact's own)."""
    options = {"function": function, "thresholds": [float(value) for value in thresholds]}
    return Engine(name, "dynprune", artifact, options)


def measure_in_turns(
    engines: Sequence[Engine],
    images: np.ndarray,
    batch: int,
    *,
    threads: int = 1,
    repeat: int = 3,
    rounds: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Measured]:
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
        By engine name.

    Raises
    ------
    EngineError
        A process died; the message has its last words.
    """
    count = len(images) // batch
    times: dict[str, list[list[float]]] = {e.name: [[] for _ in range(count)] for e in engines}
    outputs: dict[str, list[np.ndarray]] = {e.name: [] for e in engines}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, images, allow_pickle=False)
        workers = [_Worker(engine, path, batch, threads) for engine in engines]
        try:
            for worker in workers:
                worker.time(0, WARM_UP)
            for turn in range(rounds):
                for index in range(count):
                    for worker in workers:
                        name = worker.engine.name
                        times[name][index] += worker.time(index, repeat + 1)[1:]
                        if turn == 0:
                            outputs[name].append(worker.output(Path(folder) / "output.npy"))
                    advance()
            memory = {worker.engine.name: worker.peak_memory_mib() for worker in workers}
        finally:
            for worker in workers:
                worker.close()
    return {
        name: Measured(np.array(times[name]), np.concatenate(outputs[name]), memory[name])
        for name in times
    }


class _Worker:
    def __init__(self, engine: Engine, images: Path, batch: int, threads: int) -> None:
        self.engine = engine
        specification = {
            "kind": engine.kind,
            "model": str(engine.model),
            "options": engine.options,
            "batch": batch,
            "threads": threads,
        }
        counts = ("TVM_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tvm_dynprune.bench.worker"),
                *(json.dumps(specification), str(images)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **dict.fromkeys(counts, str(threads))},
            preexec_fn=lambda: pin(threads),
        )

    def time(self, index: int, repeat: int) -> list[float]:
        return self._ask({"index": index, "repeat": repeat})

    def output(self, path: Path) -> np.ndarray:
        self._ask({"output": str(path)})
        return np.load(path, allow_pickle=False)

    def peak_memory_mib(self) -> float:
        return self._ask({"memory": 0})

    def _ask(self, request: dict[str, Any]) -> Any:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            while not (line := stdout.readline()).startswith(("[", "true", *"0123456789")):
                if not line:  # engines that chat on stdout are passed over, the end is not
                    raise BrokenPipeError
            return json.loads(line)
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


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Bind this process as `pin` does, for a while."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    pin(threads)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
