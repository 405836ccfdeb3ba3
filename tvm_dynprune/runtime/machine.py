# SPDX-License-Identifier: Apache-2.0
"""Where a session's library is loaded and called: in this process."""

import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import tvm
import tvm_ffi
from tvm.runtime.vm import VirtualMachine

from tvm_dynprune.errors import ArtifactError
from tvm_dynprune.runtime.artifact import Artifact
from tvm_dynprune.runtime.weights import map_weights
from tvm_dynprune.soc import missing_here


class LocalMachine:
    """An artifact's library in this process.

    Raises
    ------
    ArtifactError
        The artifact was built for another CPU.
    """

    clock = "time"

    def __init__(self, artifact: Artifact, threads: int) -> None:
        manifest = artifact.manifest
        missing = missing_here(manifest.target, manifest.features)
        if missing:
            raise ArtifactError(
                f"{artifact.path}: built for {manifest.soc}, this machine lacks {missing}; compile "
                "it with --soc host, or run it there with --device HOST:PORT"
            )
        # Read at every parallel loop; with one thread there is no pool in between.
        os.environ["TVM_NUM_THREADS"] = str(threads)
        library = tvm.runtime.load_module(str(artifact.library))
        self._vm = VirtualMachine(library, tvm.cpu())
        weights = map_weights(artifact.weights, manifest.weight_places)
        self._weights = tvm_ffi.Array([tvm_ffi.from_dlpack(array) for array in weights])

    def invoke(self, function: str, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs of one call of "main" or "dense"."""
        return [output.numpy() for output in self.prepared(function, arrays)()]

    def prepared(
        self, function: str, arrays: Sequence[np.ndarray]
    ) -> Callable[[], Sequence[tvm.runtime.Tensor]]:
        """Return a call that copies nothing."""
        call, tensors = self._vm[function], [tvm.runtime.tensor(array) for array in arrays]
        return lambda: call(*tensors, self._weights)

    def kernel_ticks(self, function: str, arrays: Sequence[np.ndarray]) -> list[tuple[str, int]]:
        """Kernels of one call, in order, with their nanoseconds."""
        found: list[tuple[str, int]] = []
        started = 0

        def around(_func: object, name: str, before: bool, _result: object, *_arguments: object):
            nonlocal started
            if before:
                started = time.perf_counter_ns()
            elif not name.startswith("vm.builtin"):
                found.append((name, time.perf_counter_ns() - started))
            return 0

        call = self.prepared(function, arrays)
        self._vm.set_instrument(around)
        try:
            call()
        finally:
            self._vm.set_instrument(None)
        return found
