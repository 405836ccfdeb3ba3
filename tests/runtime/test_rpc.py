# SPDX-License-Identifier: Apache-2.0
"""What a host says where there is no device, or the wrong one; emulated devices have their own."""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pytest

from tvm_dynprune.errors import DeviceBusyError, DeviceError
from tvm_dynprune.runtime.artifact import versions
from tvm_dynprune.runtime.connect import connect, query_device, tracked_devices
from tvm_dynprune.runtime.rpc import DeviceInfo

INFO = DeviceInfo(
    architecture="aarch64",
    system="Linux 6.1",
    model="",
    tvm=versions()["apache-tvm"],
    features=["asimd"],
    core_max_khz=[0, 0],
    page_bytes=4096,
    memory_kib=1 << 20,
    memory_free_kib=1 << 19,
    disk_free_kib=1 << 20,
    temperature_c=None,
    clock="time",
)


@contextmanager
def server(reply: bytes) -> Iterator[str]:
    """Something that listens and answers every client with `reply`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(4)
                    client.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def status(info: DeviceInfo = INFO, busy: dict | None = None) -> bytes:
    text = json.dumps({"device": asdict(info), "busy": busy, "key": ""}).encode()
    return struct.pack("<i", len(text)) + text


@pytest.fixture
def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_device_says_what_it_is() -> None:
    with server(status()) as address:
        assert query_device(address) == (INFO, None)


@pytest.mark.parametrize("address", ["phone", "phone:", "phone:0", "phone:99999", ":9090"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(DeviceError, match="an address is HOST:PORT"):
        connect(address)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"address": "a:1", "tracker": "b:1", "key": "k"},
        {"tracker": "b:1"},
        {"address": "a:1", "key": "k"},
    ],
)
def test_a_device_is_named_in_one_way(options: dict) -> None:
    with pytest.raises(DeviceError, match="give --device HOST:PORT, or --tracker"):
        connect(**options)


def test_nobody_there(free_port: str) -> None:
    with pytest.raises(DeviceError, match=rf"{free_port}: no device server answers.*start\.sh"):
        connect(free_port)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", struct.pack("<i", 9)])
def test_something_else_listens_there(reply: bytes) -> None:
    with server(reply) as address, pytest.raises(DeviceError, match="no device server answers"):
        connect(address)


def test_busy_says_who_and_since_when() -> None:
    busy = {"client": "127.0.0.1:4321", "since_s": 12}
    with server(status(busy=busy)) as address:
        with pytest.raises(DeviceBusyError, match=r"busy: 127\.0\.0\.1:4321 has had it for 12 s"):
            connect(address, wait_s=0.3)


def test_another_version_of_tvm() -> None:
    info = DeviceInfo(**asdict(INFO) | {"tvm": "0.26.0"})
    with server(status(info)) as address:
        with pytest.raises(DeviceError, match=r"has TVM 0\.26\.0, here is .* device bundle"):
            connect(address)


def test_no_tracker(free_port: str) -> None:
    with pytest.raises(DeviceError, match=f"{free_port}: no tracker answers there"):
        tracked_devices(free_port)
