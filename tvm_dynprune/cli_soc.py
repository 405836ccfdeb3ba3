# SPDX-License-Identifier: Apache-2.0
"""`tvm-dynprune soc …`: find out what a device is, as a profile."""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from tvm_dynprune.cli_device import Address, Key, Tracker, Wait

if TYPE_CHECKING:
    from tvm_dynprune.soc.machine import Machine

app = typer.Typer(no_args_is_help=True, help="SoC profiles: `socs` lists them.")


@app.callback()
def _sub_commands() -> None:
    """Keep `detect` a sub-command while it is the only one."""


@app.command()
def detect(
    out: Annotated[
        Optional[Path],  # noqa: UP045 (typer evaluates it on Python 3.10)
        typer.Option(help="TOML file to write; its name becomes the SoC's."),
    ] = None,
    device: Address = None,
    tracker: Tracker = None,
    key: Key = None,
    wait: Wait = 0.0,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Propose a profile of this machine, or of a device over RPC."""
    from tvm_dynprune.files import refuse_existing, write_atomic
    from tvm_dynprune.soc.detect import propose_profile

    if out is not None:
        refuse_existing(out, force=force)
    machine = _machine(device, tracker, key, wait)
    name = "detected" if out is None else out.stem
    text = propose_profile(machine, name, date.today().isoformat())
    typer.echo(text, nl=False)
    if out is not None:
        with write_atomic(out) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _machine(address: str | None, tracker: str | None, key: str | None, wait_s: float) -> "Machine":
    """What the device that the options name tells of itself; this machine if they name none."""
    from tvm_dynprune.runtime.connect import connect, query_device
    from tvm_dynprune.soc.machine import Core, Machine, this_machine

    if address is None and tracker is None and key is None:
        return this_machine()
    if address is not None and tracker is None and key is None:
        place, (info, _) = f"device {address}", query_device(address)  # it need not be free
    else:
        with connect(address, tracker=tracker, key=key, wait_s=wait_s) as connected:
            place, info = f"device {connected.name}", connected.info
    return Machine(
        place=place,
        model=info.model,
        system=info.system,
        architecture=info.architecture,
        cores=tuple(Core(None, khz or None) for khz in info.core_max_khz),
        features=frozenset(info.features) or None,
    )
