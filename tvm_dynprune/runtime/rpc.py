# SPDX-License-Identifier: Apache-2.0
"""A phone or board over TVM RPC: connect, upload what has changed, run, and close properly."""

import json
import re
import socket
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tvm
from tvm import relax, rpc

from tvm_dynprune.errors import DeviceBusyError, DeviceError, DynpruneError
from tvm_dynprune.runtime.artifact import Artifact, versions

STATUS_MAGIC = 0x44505231  # device/server/main.cc
ANSWER_S = 5.0  # in which a server or a tracker answers a short question
ENDING_S = 1.0  # that a session takes to end after its client has closed it
_LOST = ("RPCCode::kReturn", "kShutdown", "Broken pipe", "Connection reset")
POLL_S = 0.2  # between looks at a device that is busy


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
        """Upload an artifact's library unless it is there, and load it.

        Raises
        ------
        DeviceError
            The device cannot run it, which is found out before anything is uploaded; its disk is
            full; or the connection is lost.
        """
        library = artifact.path / artifact.manifest.library
        self._check(artifact, library.stat().st_size)
        self._upload(library)
        with self._calling(f"loading {library.name}"):
            return DeviceMachine(self, self._session, library.name)

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
                f"{artifact.path}: its library takes {size_bytes >> 20} MiB, {self.name} has "
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
            raise DeviceError(f"{self.name}: {doing}: {_reason(error)}") from None


class DeviceMachine:
    """An artifact's library on a device; see `LocalMachine`, which is the same here."""

    def __init__(self, device: Device, session: rpc.RPCSession, library: str) -> None:
        self._device, self.clock = device, device.info.clock
        self._place = session.cpu(0)
        self._vm = relax.VirtualMachine(session.load_module(library), self._place)

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
        self._vm.set_input(function, *tensors)


def connect(
    address: str | None = None,
    *,
    tracker: str | None = None,
    key: str | None = None,
    wait_s: float = 0.0,
    session_s: int = 3600,
) -> Device:
    """Connect to a device server, directly or through a tracker.

    Parameters
    ----------
    address
        HOST:PORT of a device.
    tracker, key
        HOST:PORT of a tracker, and the key under which it has devices; instead of `address`.
    wait_s
        How long to wait for a device that is busy.
    session_s
        After which the device ends the session whatever it does.

    Raises
    ------
    DeviceBusyError
        It is busy; the message says who has it and since when.
    DeviceError
        Nobody answers there, it is no device server or another version, or the tracker has no
        such key.
    """
    if address is not None and tracker is None and key is None:
        return _connect_directly(address, wait_s, session_s)
    if address is None and tracker is not None and key is not None:
        return _connect_through(tracker, key, wait_s, session_s)
    raise DeviceError("give --device HOST:PORT, or --tracker HOST:PORT with --key KEY")


def query_device(address: str) -> tuple[DeviceInfo, str | None]:
    """What a device is, and who has it, or None; it need not be free.

    Raises
    ------
    DeviceError
        Nobody answers there, or it is no device server.
    """
    host, port = parse_address(address)
    try:
        with socket.create_connection((host, port), ANSWER_S) as stream:
            stream.sendall(struct.pack("<i", STATUS_MAGIC))
            size = struct.unpack("<i", _receive(stream, 4))[0]
            status = json.loads(_receive(stream, size))
    except (OSError, ValueError, struct.error) as error:
        raise DeviceError(
            f"{address}: no device server answers there ({error}); run start.sh of the bundle on "
            "the device, for Android also `adb forward tcp:PORT tcp:PORT`"
        ) from None
    busy = status["busy"]
    holder = None if busy is None else f"{busy['client']} has had it for {busy['since_s']} s"
    return DeviceInfo.parse(status["device"]), holder


def tracked_devices(tracker: str) -> dict[str, tuple[int, int]]:
    """Key → number of devices that a tracker has under it, and of those that are free.

    Raises
    ------
    DeviceError
        No tracker answers there.
    """
    with _tracker_session(tracker) as session:
        summary = session.summary()
    keys = [item["key"].removeprefix("server:") for item in summary["server_info"]]
    queues = summary["queue_info"]
    return {key: (keys.count(key), queues.get(key, {}).get("free", 0)) for key in sorted(set(keys))}


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT."""
    match = re.fullmatch(r"([^:]+):(\d+)", address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise DeviceError(f"{address}: an address is HOST:PORT, as 127.0.0.1:9090")
    return match[1], int(match[2])


def check_version(name: str, info: DeviceInfo) -> None:
    """Raise DeviceError if the device has another version of TVM than this machine."""
    here = versions()["apache-tvm"]
    if info.tvm != here:
        raise DeviceError(
            f"{name}: its server has TVM {info.tvm}, here is {here}; make a bundle with "
            "`tvm-dynprune device bundle` and start that"
        )


def _connect_directly(address: str, wait_s: float, session_s: int) -> Device:
    deadline = time.monotonic() + max(wait_s, ENDING_S)
    info, holder = query_device(address)
    while holder is not None:
        if time.monotonic() >= deadline:
            raise DeviceBusyError(f"{address} is busy: {holder}; --wait SECONDS waits for it")
        time.sleep(POLL_S)
        info, holder = query_device(address)
    check_version(address, info)
    host, port = parse_address(address)
    try:
        session = rpc.connect(host, port, session_timeout=session_s)
    except Exception as error:
        raise DeviceError(
            f"{address}: refuses ({_reason(error)}); a device with a tracker is reached through "
            "it: --tracker HOST:PORT --key KEY"
        ) from None
    return Device(address, session)


def _connect_through(tracker: str, key: str, wait_s: float, session_s: int) -> Device:
    deadline = time.monotonic() + max(wait_s, ENDING_S)
    while True:
        devices = tracked_devices(tracker)
        total, free = devices.get(key, (0, 0))
        if free:
            break
        if time.monotonic() >= deadline:
            if total:
                raise DeviceBusyError(
                    f"tracker {tracker}: {total} under key {key!r}, none free; --wait SECONDS waits"
                )
            known = ", ".join(devices) or "no device at all"
            raise DeviceError(f"tracker {tracker} has nothing under key {key!r}: it has {known}")
        time.sleep(POLL_S)
    with _tracker_session(tracker) as session:
        session._sock.settimeout(max(wait_s, ANSWER_S))
        try:
            remote = session.request(key, session_timeout=session_s, max_retry=1)
        except Exception as error:
            raise DeviceError(f"tracker {tracker}, key {key!r}: {_reason(error)}") from None
    return Device(f"{key} of {tracker}", remote)


@contextmanager
def _tracker_session(tracker: str) -> Iterator[rpc.TrackerSession]:
    host, port = parse_address(tracker)
    try:
        socket.create_connection((host, port), ANSWER_S).close()  # TVM itself tries for a minute
        session = rpc.connect_tracker(host, port)
    except (OSError, RuntimeError) as error:
        raise DeviceError(
            f"{tracker}: no tracker answers there ({error}); start one with `python -m "
            "tvm.exec.rpc_tracker --host 127.0.0.1 --port PORT`"
        ) from None
    try:
        yield session
    finally:
        session.close()


def _receive(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = stream.recv(size - len(data))
        if not piece:
            raise ConnectionError("it hung up")
        data += piece
    return data


def _reason(error: Exception) -> str:
    """One line of what TVM raised: our server's own words where there are any."""
    text = str(error)
    if told := re.search(r"Device(?:Crash|Timeout): (.*)", text):
        return told[1]
    if any(sign in text for sign in _LOST):
        return "the connection was lost"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
