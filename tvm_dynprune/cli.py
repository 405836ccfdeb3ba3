# SPDX-License-Identifier: Apache-2.0
"""The command line: one sub-command per stage; a stage is imported only when it runs."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from tvm_dynprune import cli_device, cli_measure, cli_soc, cli_train, cli_tune
from tvm_dynprune.cli_options import (
    Force,
    Log,
    Lowering,
    Precision,
    SocName,
    checked_lowering,
    show,
    stdout_console,
    tuned_kernels,
)
from tvm_dynprune.errors import DynpruneError, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Dynamic channel pruning of CNNs on Apache TVM: closed kernels are not executed.",
)
app.add_typer(cli_device.app, name="device")
app.add_typer(cli_soc.app, name="soc")
app.add_typer(cli_tune.app, name="tune")
app.command()(cli_train.train)
app.command()(cli_train.export)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("dynprune-demo"),
    lowering: Lowering = "indexed",
    data: Annotated[
        Optional[Path],  # noqa: UP045 (typer evaluates it on Python 3.10)
        typer.Option(help="Folder with CIFAR-10: measure the shipped CIFAR-10 network too."),
    ] = None,
    force: Force = False,
) -> None:
    """Compile the shipped gated network, run 1,000 real images, write the report."""
    from tvm_dynprune.demo import run_demo
    from tvm_dynprune.tables import demo_table

    result, second = run_demo(out, lowering=checked_lowering(lowering), cifar10=data, force=force)
    show(result, None)
    if second:
        stdout_console().print(demo_table(second))
    stdout_console().print(f"report: {out / 'report.html'}")


@app.command("compile")
def compile_command(
    model: Annotated[Path, typer.Argument(help=".pt2 or .onnx file.")],
    out: Annotated[Path, typer.Option(help="Artifact folder to write.")],
    soc: SocName = "host",
    lowering: Lowering = "auto",
    precision: Precision = "float32",
    batch: Annotated[Optional[int], typer.Option(min=1, help="Batch size.")] = None,  # noqa: UP045
    calibrate: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Images on which auto measures what gates leave open."),
    ] = None,
    log: Log = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse unusable gates.")] = False,
    dump_ir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the module after every pass into this folder."),
    ] = None,
    time_passes: Annotated[bool, typer.Option("--time-passes", help="Time the passes.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print each layer's kernel and why.")
    ] = False,
    force: Force = False,
) -> None:
    """Compile a model into an artifact for one SoC."""
    from tvm_dynprune.bench.run import as_input
    from tvm_dynprune.compiler import compile
    from tvm_dynprune.data import load_images
    from tvm_dynprune.files import refuse_existing
    from tvm_dynprune.frontend.model import load_model
    from tvm_dynprune.passes.instruments import Timer
    from tvm_dynprune.progress import working
    from tvm_dynprune.soc import load_soc
    from tvm_dynprune.tables import choices_table

    refuse_existing(out, force=force)
    timer = Timer() if time_passes else None
    target = load_soc(soc)
    with working(f"compiling {model.name}"):
        images = None
        if calibrate is not None:
            images = as_input(load_images(calibrate, "train").images[:200])
        artifact = compile(
            load_model(model, batch=batch),
            target,
            out,
            lowering=checked_lowering(lowering),
            precision=precision,
            calibration=images,
            tuned=tuned_kernels(log, target, lowering),
            strict=strict,
            force=force,
            dump_ir=dump_ir,
            timer=timer,
        )
    for name, milliseconds in timer.times_ms if timer else []:
        stdout_console().print(f"{milliseconds:10.1f} ms  {name}")
    if explain:
        stdout_console().print(choices_table(artifact.manifest.choices))
    error = artifact.manifest.max_abs_error
    tested = (
        "not tested here: `run --self-test --device` does"
        if error is None
        else f"error {error:.1e} of scale"
    )
    stdout_console().print(f"{out}: {len(artifact.manifest.gates)} gates, {tested}")


# In the order in which --help lists them.
app.command()(cli_measure.calibrate)
app.command()(cli_measure.run)
app.command()(cli_measure.bench)


@app.command()
def report(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="JSON files of run, bench and calibrate; checkpoint folders or log.jsonl of train."
        ),
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    force: Force = False,
) -> None:
    """Write one HTML page from measurements and trainings."""
    from tvm_dynprune.report import write_report

    write_report(inputs, out, force=force)


@app.command()
def socs() -> None:
    """List the SoC profiles."""
    from tvm_dynprune.soc import list_socs, load_soc

    for name in list_socs():
        soc = load_soc(name)
        stdout_console().print(
            f"{name:<18} {soc.target['mcpu']}, {soc.cores} core{'s' * (soc.cores > 1)}, "
            f"{soc.lanes} lanes: {soc.description}"
        )


@app.command()
def doctor() -> None:
    """Check this machine and say what to install."""
    from tvm_dynprune.doctor import run_doctor

    checks = run_doctor()
    for check in checks:
        mark = "ok" if check.ok else "FAILED"
        advice = f"; {check.advice}" if check.advice else ""
        stdout_console().print(f"{mark:<7} {check.name}: {check.detail}{advice}", highlight=False)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; a user's mistake is one line and exit status 2."""
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except DynpruneError as error:
        _fail(f"internal error: {error}", 1)


def _fail(message: str, status: int) -> None:
    if "--debug" in sys.argv:
        raise
    line = " ".join(message.split())
    print(f"tvm-dynprune: {line}", file=sys.stderr)
    sys.exit(status)
