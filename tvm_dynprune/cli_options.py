# SPDX-License-Identifier: Apache-2.0
"""What several sub-commands share: their options, how these are read, and how results are shown."""

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from tvm_dynprune.errors import UserError

Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Threads = Annotated[int, typer.Option(min=1, help="Worker threads.")]
SocName = Annotated[
    str, typer.Option("--soc", help="SoC profile or its .toml; 'host' is this machine.")
]
JsonOut = Annotated[
    Optional[Path],  # noqa: UP045 (typer evaluates it on Python 3.10)
    typer.Option("--json", help="Write the measurement there; '-' prints it and nothing else."),
]
Lowering = Annotated[str, typer.Option(help="auto, dense, if or indexed.")]
Precision = Annotated[str, typer.Option(help="float32, or float16 for SoCs that compute in it.")]
Log = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--log", help="Folder that tune wrote: take its best kernels."),
]


def checked_lowering(name: str) -> str:
    """Return the name of a lowering if there is such."""
    from tvm_dynprune.passes.choose_lowering import LOWERINGS

    if name not in LOWERINGS:
        raise UserError(f"--lowering {name}: one of {', '.join(LOWERINGS)}")
    return name


def tuned_kernels(log: Path | None, soc: Any, lowering: str) -> dict[str, Any] | None:
    """Return what a tuning log says of kernels on a SoC; None without a log."""
    if log is None:
        return None
    if lowering != "auto":
        raise UserError(f"--log is for --lowering auto: {lowering} has schedules of its own")
    from tvm_dynprune.tune.log import check_info, read_info
    from tvm_dynprune.tune.open_cost import read_tuned

    check_info(log, read_info(log), dict(soc.target))
    return read_tuned(log)


def stdout_console() -> Any:
    """Return where results go: lines are not cut at the terminal's width."""
    from rich.console import Console

    return Console(soft_wrap=True)


def show(result: dict[str, Any], json_out: Path | None) -> None:
    """Print the table, write the JSON, or print only the JSON."""
    from tvm_dynprune.bench.run import write_json
    from tvm_dynprune.tables import bench_table, run_table

    if json_out is not None and str(json_out) == "-":
        print(json.dumps(result))
        return
    if json_out is not None:
        write_json(result, json_out)
    table = bench_table if result["kind"] == "bench" else run_table
    stdout_console().print(table(result))
