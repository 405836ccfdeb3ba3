# SPDX-License-Identifier: Apache-2.0
"""`tvm-dynprune device …`, and the options by which other commands name a device."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from tvm_dynprune.errors import UserError

if TYPE_CHECKING:
    from tvm_dynprune.runtime.rpc import Device

app = typer.Typer(no_args_is_help=True, help="Phones and boards over RPC, and an emulated one.")

Address = Annotated[
    Optional[str],  # noqa: UP045 (typer evaluates it on Python 3.10)
    typer.Option("--device", help="HOST:PORT of a device server."),
]
Tracker = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--tracker", help="HOST:PORT of an RPC tracker; with --key."),
]
Key = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--key", help="Key under which the tracker has devices."),
]
Wait = Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for a busy device.")]


@contextmanager
def connected(
    address: str | None, tracker: str | None, key: str | None, wait_s: float
) -> Iterator["Device | None"]:
    """Yield the device that the options name, None if they name none."""
    from tvm_dynprune.runtime.connect import connect

    if address is None and tracker is None and key is None:
        yield None
        return
    with connect(address, tracker=tracker, key=key, wait_s=wait_s) as device:
        yield device


@app.command()
def bundle(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    soc: Annotated[str, typer.Option(help="SoC profile of the device.")] = "aarch64-generic",
    force: Annotated[bool, typer.Option("--force", help="Replace the folder.")] = False,
) -> None:
    """Make the folder to push to a device: server, runtime, start script."""
    from tvm_dynprune.device import build_bundle
    from tvm_dynprune.progress import working
    from tvm_dynprune.soc import load_soc

    with working("building the device server"):
        files = build_bundle(load_soc(soc), out, force=force)
    for file in files:
        typer.echo(f"{file.size_bytes / 1024:9.0f} KiB  {file.sha256[:16]}  {file.name}")
    total = sum(file.size_bytes for file in files) / 2**20
    typer.echo(f"{total:9.1f} MiB in {out}: push it to the device and run start.sh there")


@app.command()
def emulate(
    bundle: Annotated[Path, typer.Argument(help="Folder that `device bundle` wrote.")],
    cpu: Annotated[str, typer.Option(help="QEMU's name of the processor.")] = "cortex-a76",
    page_size: Annotated[int, typer.Option(help="4096 or 16384 bytes.")] = 4096,
    count_instructions: Annotated[
        bool, typer.Option("--count-instructions", help="Instructions are the device's clock.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 1,
    port: Annotated[int, typer.Option(help="0 takes any that is free.")] = 9090,
    tracker: Tracker = None,
    key: Key = None,
) -> None:
    """Run a bundle under QEMU until interrupted; its time says nothing of a phone's."""
    from tvm_dynprune.device import EmulatedDevice
    from tvm_dynprune.device.emulator import CPUS

    if cpu not in CPUS:
        raise UserError(f"--cpu {cpu}: one of {', '.join(CPUS)}")
    if page_size not in (4096, 16384):
        raise UserError(f"--page-size {page_size}: 4096 or 16384")
    if (tracker is None) != (key is None):
        raise UserError("--tracker and --key go together")
    with EmulatedDevice(
        bundle,
        cpu=cpu,
        page_bytes=page_size,
        count_instructions=count_instructions,
        threads=threads,
        port=port,
        tracker=tracker,
        key=key or "",
    ) as device:
        typer.echo(f"{cpu} at {device.address}; Ctrl-C ends it")
        device.wait()


@app.command("info")
def info_command(address: Annotated[str, typer.Argument(help="HOST:PORT of a device.")]) -> None:
    """Say what a device is, and whether it is free."""
    from dataclasses import asdict

    from tvm_dynprune.runtime.connect import query_device

    info, holder = query_device(address)
    for name, value in asdict(info).items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        typer.echo(f"{name:<16} {text}")
    typer.echo(f"{'busy':<16} {holder or 'no'}")


@app.command("list")
def list_command(tracker: Annotated[str, typer.Option(help="HOST:PORT of a tracker.")]) -> None:
    """List what a tracker has."""
    from tvm_dynprune.runtime.connect import tracked_devices

    devices = tracked_devices(tracker)
    if not devices:
        typer.echo(f"tracker {tracker} has no device")
    for key, (total, free) in devices.items():
        typer.echo(f"{key:<24} {total} devices, {free} free")
