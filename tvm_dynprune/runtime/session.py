# SPDX-License-Identifier: Apache-2.0
"""Session: run an artifact, on this machine or on a device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvm_dynprune.errors import DataError, UserError
from tvm_dynprune.runtime.artifact import BY_KERNEL, Artifact
from tvm_dynprune.runtime.machine import LocalMachine
from tvm_dynprune.runtime.macs import executed_macs
from tvm_dynprune.runtime.rpc import Device, DeviceMachine

TOLERANCE = {"float32": 1e-4, "float16": 2e-2}  # of the output's scale


@dataclass(frozen=True)
class SelfTest:
    """Comparison of an artifact with its reference outputs.

    Attributes
    ----------
    precision
        The artifact's.
    max_abs_error
        As a fraction of the outputs' largest absolute value; in float16 the median of the images,
        as a gate that decides otherwise about one of them changes more than rounding does.
    """

    precision: str
    max_abs_error: float

    @property
    def ok(self) -> bool:
        """Whether the artifact computes what its model's own framework computed."""
        return self.max_abs_error <= TOLERANCE[self.precision]


class Session:
    """Runs a compiled network and remembers what its gates decided.

    Parameters
    ----------
    artifact
        What to run.
    threads
        Worker threads here; more than the machine has cores only slows down. A device's are those
        that its server was started with.
    device
        Where to run it, if not here; see `connect`.

    Raises
    ------
    ArtifactError
        The artifact was built for another CPU than this machine's.
    DeviceError
        The device cannot run it, or is lost; so do all methods that run something.
    """

    def __init__(
        self, artifact: Artifact, *, threads: int = 1, device: Device | None = None
    ) -> None:
        self.artifact, self.manifest = artifact, artifact.manifest
        self._machine: LocalMachine | DeviceMachine = (
            LocalMachine(artifact, threads) if device is None else device.load(artifact)
        )
        self._thresholds = self._default_thresholds()
        self._open = [np.ones((0, gate.channels), bool) for gate in self.manifest.gates]

    @property
    def clock(self) -> str:
        """What ticks are: "time", in ns, or "instructions" on a device that counts them."""
        return self._machine.clock

    @property
    def thresholds(self) -> dict[str, float]:
        """Layer → threshold of its gate, for the gates that have one."""
        return {
            gate.layer: float(self._thresholds[gate.threshold_index])
            for gate in self.manifest.gates
            if gate.threshold_index is not None
        }

    def set_thresholds(self, thresholds: float | Mapping[str, float]) -> None:
        """Change thresholds: one value for all gates, or a value per layer.

        Raises
        ------
        UserError
            No gate has that name, or it has no threshold.
        """
        known = self.thresholds
        if not known:
            raise UserError(f"{self.manifest.network} has no gate with a threshold to change")
        if not isinstance(thresholds, Mapping):
            thresholds = dict.fromkeys(known, float(thresholds))
        unknown = sorted(set(thresholds) - set(known))
        if unknown:
            names = ", ".join(known) or "none"
            raise UserError(f"no threshold for {', '.join(unknown)}: gates with one are {names}")
        for gate in self.manifest.gates:
            if gate.layer in thresholds and gate.threshold_index is not None:
                self._thresholds[gate.threshold_index] = thresholds[gate.layer]

    @property
    def threshold_values(self) -> np.ndarray:
        """(T,) float32: the distinct thresholds in the order in which the library takes them."""
        return self._thresholds.copy()

    def set_threshold_values(self, values: Sequence[float] | np.ndarray) -> None:
        """Set all of `threshold_values`."""
        self._thresholds = np.array(values, "float32").reshape(self._thresholds.shape)

    def use(self, point: str) -> None:
        """Set the thresholds to a named operating point; nothing is compiled anew.

        Raises
        ------
        UserError
            The artifact has no point of that name.
        """
        points = self.manifest.points
        if point not in points:
            known = ", ".join(points) or "none: `tvm-dynprune calibrate` makes them"
            raise UserError(f"no operating point {point!r}: {self.artifact.path} has {known}")
        shift = np.float32(points[point].threshold_shift)
        self._thresholds = self._default_thresholds() + shift

    def run(self, x: np.ndarray) -> np.ndarray:
        """Run the gated network.

        Parameters
        ----------
        x
            Images (N, C, H, W) float32, for any N.

        Returns
        -------
        np.ndarray
            The first output, for classifiers (N, classes) float32.

        Raises
        ------
        DataError
            `x` has another shape or dtype than the network takes.
        """
        return self.run_all(x)[0]

    def run_all(self, x: np.ndarray) -> list[np.ndarray]:
        """Run the gated network; every output. See `run`."""
        return self._run("main", x)

    def run_dense(self, x: np.ndarray) -> np.ndarray:
        """Run the network without its gates; its first output."""
        return self._run("dense", x)[0]

    @property
    def open_channels(self) -> list[np.ndarray]:
        """What each gate decided in the last `run`: (N, C) bool."""
        return self._open

    @property
    def open_groups(self) -> dict[str, np.ndarray]:
        """Layer → (N, groups) bool: what its gate decided in the last `run`."""
        return {
            gate.layer: decided.reshape(len(decided), gate.groups, gate.group_size).any(axis=2)
            for gate, decided in zip(self.manifest.gates, self._open, strict=True)
        }

    @property
    def macs(self) -> np.ndarray:
        """(N,) int64: multiply-accumulates that each input of the last `run` took."""
        return executed_macs(self.manifest.layers, self._open)

    def prepared(self, x: np.ndarray, *, function: str = "main") -> Callable[[], Sequence]:
        """Return a call of the compiled function on one batch, for timing: nothing is copied.

        Parameters
        ----------
        x
            Exactly one batch.
        function
            "main" or "dense".

        Returns
        -------
        Callable
            Each call computes anew and returns the outputs, for "main" followed by what all gates
            decided, (N, sum of their channels) bool.

        Raises
        ------
        UserError
            The session is a device's, whose own clock has to be used: `device_ticks`.
        """
        if not isinstance(self._machine, LocalMachine):
            raise UserError("calls over RPC are not to be timed here: use device_ticks")
        return self._machine.prepared(function, self._arguments(function, self._checked(x)))

    def device_ticks(
        self, x: np.ndarray, *, function: str = "main", repeats: int = 1
    ) -> list[float]:
        """Ticks of the device's clock (ns or instructions) that one batch takes, `repeats` times.

        Raises
        ------
        UserError
            The session is of this machine: use `prepared`.
        """
        if not isinstance(self._machine, DeviceMachine):
            raise UserError("this machine has no evaluator of its own: use prepared")
        arguments = self._arguments(function, self._checked(x))
        return self._machine.evaluate(function, arguments, repeats)

    def kernel_ticks(self, x: np.ndarray, *, function: str = "main") -> list[tuple[str, int]]:
        """Kernels of the compiled function in the order in which they ran, with their costs.

        Parameters are those of `prepared`. A cost is in nanoseconds, or in instructions where a
        device counts those; it has about a microsecond of the measurement's own.
        """
        arguments = self._arguments(function, self._checked(x))
        return self._machine.kernel_ticks(function + BY_KERNEL, arguments)

    def self_test(self) -> SelfTest:
        """Run the reference inputs and compare with the reference outputs."""
        reference = self.artifact.reference()
        outputs = self.run_all(reference["input"])
        precision = self.manifest.precision
        of_images = np.max if precision == "float32" else np.median
        error = 0.0
        for i, output in enumerate(outputs):
            wanted = reference[f"output_{i}"]
            scale = max(float(np.abs(wanted).max()), 1e-12)
            errors = np.abs(output - wanted).reshape(len(wanted), -1).max(axis=1)
            error = max(error, float(of_images(errors)) / scale)
        return SelfTest(precision, error)

    def _default_thresholds(self) -> np.ndarray:
        values: dict[int, float] = {}
        for gate in self.manifest.gates:
            if gate.threshold_index is not None and gate.threshold is not None:
                values[gate.threshold_index] = gate.threshold
        return np.array([values[i] for i in range(len(values))], "float32")

    def _checked(self, x: np.ndarray) -> np.ndarray:
        wanted = tuple(self.manifest.input_shape[1:])
        if x.ndim != len(wanted) + 1 or x.shape[1:] != wanted or len(x) == 0:
            raise DataError(
                f"input of shape {x.shape}: {self.manifest.network} takes (N, {wanted})"
            )
        if x.dtype != np.float32:
            raise DataError(f"input of dtype {x.dtype}: the network takes float32 in [0, 1]")
        return np.ascontiguousarray(x)

    def _arguments(self, function: str, x: np.ndarray) -> list[np.ndarray]:
        return [x, self._thresholds] if function == "main" and len(self._thresholds) else [x]

    def _run(self, function: str, x: np.ndarray) -> list[np.ndarray]:
        x = self._checked(x)
        batch = self.manifest.input_shape[0]
        pieces: list[list[np.ndarray]] = []
        for start in range(0, len(x), batch):
            piece = x[start : start + batch]
            size = len(piece)
            if size < batch:  # fill the last batch up with its last image
                piece = np.concatenate([piece, np.repeat(piece[-1:], batch - size, axis=0)])
            results = self._machine.invoke(function, self._arguments(function, piece))
            pieces.append([result[:size] for result in results])
        joined = [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
        outputs = len(self.manifest.output_shapes)
        if function == "main" and len(joined) > outputs:
            ends = np.cumsum([gate.channels for gate in self.manifest.gates])
            self._open = np.split(joined[outputs].astype(bool), ends[:-1], axis=1)
        return joined[:outputs]
