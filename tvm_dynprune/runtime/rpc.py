# SPDX-License-Identifier: Apache-2.0
"""A session with a phone or board over TVM RPC: upload what has changed, run, close properly."""

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tvm
from tvm import rpc
from tvm.runtime.vm import VirtualMachine

from tvm_dynprune.errors import DeviceError, DynpruneError
from tvm_dynprune.runtime.artifact import Artifact, Manifest, versions
from tvm_dynprune.runtime.weights import layout_of

_LOST = ("RPCCode::kReturn", "kShutdown", "Broken pipe", "Connection reset")


@dataclass(frozen=True)
class DeviceInfo:
    """What a device says of itself; see device/server/device_info.h.

    Attributes
    ----------
    features
        Instruction sets, named as in /proc/cpuinfo.
    core_max_khz
        Highest frequency of each core, 0 where the system does not say; equal ones are a cluster.
    temperature_c
        Of the hottest zone, None where none can be read.
    clock
        "time", or "instructions" on an emulated device that counts them.
    """

    architecture: str
    system: str
    model: str
    tvm: str
    features: list[str]
    core_max_khz: list[int]
    page_bytes: int
    memory_kib: int
    memory_free_kib: int
    disk_free_kib: int
    temperature_c: float | None
    clock: str

    @classmethod
    def parse(cls, table: dict[str, Any]) -> "DeviceInfo":
        """From the JSON that a device sends."""
        return cls(**{field.name: table[field.name] for field in fields(cls)})


class Device:
    """A session with a device; a context manager that closes it. See `connect`."""

    def __init__(self, name: str, session: rpc.RPCSession) -> None:
        self.name, self._session = name, session
        with self._calling("asking what it is"):
            self.info = DeviceInfo.parse(json.loads(self.call("dynprune.device_info")))

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function that the device's server or runtime has registered."""
        return self._session.get_function(function)(*arguments)

    def load(self, artifact: Artifact) -> "DeviceMachine":
        """Upload an artifact's library and weights unless they are there, and load them.

        Raises
        ------
        DeviceError
            The device cannot run it, which is found out before anything is uploaded; its disk is
            full; or the connection is lost.
        """
        files = artifact.library, artifact.weights
        self._check(artifact, sum(file.stat().st_size for file in files))
        for file in files:
            self._upload(file)
        with self._calling(f"loading {artifact.library.name}"):
            return DeviceMachine(self, self._session, artifact.manifest)

    def close(self) -> None:
        """End the session; the device is then free, whoever still holds objects of it."""
        try:
            self._session._sess.get_function("CloseRPCConnection")()
        except Exception:
            pass  # lost already

    def __enter__(self) -> "Device":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session."""
        self.close()

    def _check(self, artifact: Artifact, size_bytes: int) -> None:
        manifest, info = artifact.manifest, self.info
        built = manifest.target["mtriple"].split("-")[0]
        if built != info.architecture:
            raise DeviceError(
                f"{artifact.path}: built for {built}, {self.name} is {info.architecture}; compile "
                "it with --soc NAME of such a device"
            )
        missing = [name for name in manifest.features if name not in info.features]
        if missing:
            raise DeviceError(
                f"{artifact.path}: built for {manifest.soc}, {self.name} lacks "
                f"{', '.join(missing)}; compile it for an older processor (aarch64-generic runs "
                "on all)"
            )
        check_version(self.name, info)
        # 0: the device could not say, as where /proc is not mounted
        if info.memory_kib and size_bytes > info.memory_free_kib * 1024:
            raise DeviceError(
                f"{artifact.path}: code and weights take {size_bytes >> 20} MiB, {self.name} has "
                f"{info.memory_free_kib >> 10} MiB of memory free"
            )

    def _upload(self, path: Path) -> None:
        data = path.read_bytes()
        wanted = zlib.crc32(data)
        with self._calling(f"uploading {path.name}"):
            if self.call("dynprune.crc32", path.name) == wanted:
                return
            self._session.upload(bytearray(data), path.name)
            arrived = self.call("dynprune.crc32", path.name) == wanted
            if arrived:
                return
            info = DeviceInfo.parse(json.loads(self.call("dynprune.device_info")))
            self._session.remove(path.name)
        raise DeviceError(
            f"{self.name}: {path.name} ({len(data) >> 10} KiB) did not arrive whole; its disk has "
            f"{info.disk_free_kib} KiB free"
        )

    @contextmanager
    def _calling(self, doing: str) -> Iterator[None]:
        """Turn whatever TVM raises while the device is called into one line."""
        try:
            yield
        except DynpruneError:
            raise
        except Exception as error:
            raise DeviceError(f"{self.name}: {doing}: {reason_of(error)}") from None


class DeviceMachine:
    """An artifact's library on a device; see `LocalMachine`, which is the same here."""

    def __init__(self, device: Device, session: rpc.RPCSession, manifest: Manifest) -> None:
        self._device, self.clock = device, device.info.clock
        self._place = session.cpu(0)
        self._vm = VirtualMachine(session.load_module(manifest.library), self._place)
        layout = layout_of(manifest.weight_places)
        self._weights = device.call("dynprune.map_weights", manifest.weights, layout)

    def invoke(self, function: str, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs of one call of "main" or "dense"."""
        with self._device._calling(f"running {function}"):
            self._set_input(function, arrays)
            self._vm.invoke_stateful(function)
            return [output.numpy() for output in self._vm.get_outputs(function)]

    def evaluate(self, function: str, arrays: Sequence[np.ndarray], repeats: int) -> list[float]:
        """Ticks of the device's clock (nanoseconds, or instructions) of each of `repeats` runs."""
        with self._device._calling(f"timing {function}"):
            self._set_input(function, arrays)
            timer = self._vm.time_evaluator(
                "invoke_stateful", self._place, number=1, repeat=repeats
            )
            return [1e9 * seconds for seconds in timer(function).results]

    def kernel_ticks(self, function: str, arrays: Sequence[np.ndarray]) -> list[tuple[str, int]]:
        """Kernels of one call, in order, with the ticks of the device's clock."""
        with self._device._calling(f"profiling {function}"):
            self._set_input(function, arrays)
            self._vm.set_instrument("dynprune.profile")
            try:
                self._vm.invoke_stateful(function)
            finally:
                self._vm.set_instrument(None)
            calls = json.loads(self._device.call("dynprune.profile_take"))
        return [(name, ticks) for name, ticks in calls if not name.startswith("vm.builtin")]

    def _set_input(self, function: str, arrays: Sequence[np.ndarray]) -> None:
        tensors = [tvm.runtime.tensor(array, self._place) for array in arrays]
        self._vm.set_input(function, *tensors, self._weights)


def check_version(name: str, info: DeviceInfo) -> None:
    """Raise DeviceError if the device has another version of TVM than this machine."""
    here = versions()["apache-tvm"]
    if info.tvm != here:
        raise DeviceError(
            f"{name}: its server has TVM {info.tvm}, here is {here}; make a bundle with "
            "`tvm-dynprune device bundle` and start that"
        )


def reason_of(error: Exception) -> str:
    """One line of what TVM raised: our server's own words where there are any."""
    text = str(error)
    if told := re.search(r"Device(?:Crash|Timeout): (.*)", text):
        return told[1]
    if any(sign in text for sign in _LOST):
        return "the connection was lost"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
