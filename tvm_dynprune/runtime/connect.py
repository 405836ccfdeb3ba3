# SPDX-License-Identifier: Apache-2.0
"""Finding a phone or board: by its address or through a tracker, waiting where it is busy."""

import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tvm import rpc

from tvm_dynprune.errors import DeviceBusyError, DeviceError
from tvm_dynprune.runtime.rpc import Device, DeviceInfo, check_version, reason_of

STATUS_MAGIC = 0x44505231  # device/server/main.cc
ANSWER_S = 5.0  # in which a server or a tracker answers a short question
ENDING_S = 1.0  # that a session takes to end after its client has closed it
POLL_S = 0.2  # between looks at a device that is busy


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
            f"{address}: refuses ({reason_of(error)}); a device with a tracker is reached through "
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
            raise DeviceError(f"tracker {tracker}, key {key!r}: {reason_of(error)}") from None
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
