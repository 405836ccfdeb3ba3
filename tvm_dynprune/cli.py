# SPDX-License-Identifier: Apache-2.0
"""The command line: one sub-command per stage; a stage is imported only when it runs."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, cast

import typer

from tvm_dynprune import cli_device, cli_soc, cli_train, cli_tune
from tvm_dynprune.cli_device import Address, Key, Tracker, Wait, connected
from tvm_dynprune.errors import DataError, DynpruneError, UserError

if TYPE_CHECKING:
    from tvm_dynprune.data import Split

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

Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Threads = Annotated[int, typer.Option(min=1, help="Worker threads.")]
SocName = Annotated[
    str, typer.Option("--soc", help="SoC profile or its .toml; 'host' is this machine.")
]
JsonOut = Annotated[
    Optional[Path],  # noqa: UP045 (typer evaluates it on Python 3.10)
    typer.Option("--json", help="Write the measurement there; '-' prints it and nothing else."),
]
SplitName = Annotated[
    str, typer.Option(help="test, train, or validation: what train holds out of train.")
]
Lowering = Annotated[str, typer.Option(help="auto, dense, if or indexed.")]
Log = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--log", help="Folder that tune wrote: take its best kernels."),
]


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
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder with CIFAR-10: measure the shipped CIFAR-10 network too."),
    ] = None,
    force: Force = False,
) -> None:
    """Compile the shipped gated network, run 1,000 real images, write the report."""
    from tvm_dynprune.demo import run_demo
    from tvm_dynprune.tables import demo_table

    result, second = run_demo(out, lowering=_lowering(lowering), cifar10=data, force=force)
    _show(result, None)
    if second:
        _console().print(demo_table(second))
    _console().print(f"report: {out / 'report.html'}")


@app.command("compile")
def compile_command(
    model: Annotated[Path, typer.Argument(help=".pt2 or .onnx file.")],
    out: Annotated[Path, typer.Option(help="Artifact folder to write.")],
    soc: SocName = "host",
    lowering: Lowering = "auto",
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
    from tvm_dynprune.compiler import compile, load_model
    from tvm_dynprune.data import load_images
    from tvm_dynprune.files import refuse_existing
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
            lowering=_lowering(lowering),
            calibration=images,
            tuned=_tuned(log, target, lowering),
            strict=strict,
            force=force,
            dump_ir=dump_ir,
            timer=timer,
        )
    for name, milliseconds in timer.times_ms if timer else []:
        _console().print(f"{milliseconds:10.1f} ms  {name}")
    if explain:
        _console().print(choices_table(artifact.manifest.choices))
    error = artifact.manifest.max_abs_error
    tested = (
        "not tested here: `run --self-test --device` does"
        if error is None
        else f"error {error:.1e} of scale"
    )
    _console().print(f"{out}: {len(artifact.manifest.gates)} gates, {tested}")


@app.command()
def calibrate(
    artifact: Annotated[Path, typer.Argument(help="Folder that compile wrote.")],
    data: Annotated[Optional[Path], typer.Option(help="Data folder.")] = None,  # noqa: UP045
    split: SplitName = "validation",
    max_macs: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Add the most accurate point within this share of the dense MACs."),
    ] = None,
    max_drop: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Add the cheapest point that loses at most this, in percentage points."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the point that is added.")] = "custom",
    points: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Take the points of this calibration's --json; nothing is measured."),
    ] = None,
    threads: Threads = 1,
    device: Address = None,
    tracker: Tracker = None,
    key: Key = None,
    wait: Wait = 0.0,
    json_out: JsonOut = None,
) -> None:
    """Measure accuracy and cost over a range of thresholds; store named operating points."""
    from tvm_dynprune.bench import calibrate as stage
    from tvm_dynprune.data import load_images
    from tvm_dynprune.runtime import Artifact
    from tvm_dynprune.runtime.artifact import read_points, store_points
    from tvm_dynprune.tables import points_table

    for option, value, limit in (("--max-macs", max_macs, 1), ("--max-drop", max_drop, 100)):
        if value is not None and not 0 < value <= limit:
            raise UserError(f"{option} {value}: above 0 and at most {limit}")
    if (data is None) == (points is None):
        raise UserError("calibrate: give --data DIR or --points FILE")
    loaded = Artifact.load(artifact)
    if points is not None:
        loaded = store_points(loaded, read_points(points))
        _console().print(points_table(loaded.manifest))
        return
    assert data is not None
    images = load_images(data, _split(split), classes=loaded.manifest.classes or None)
    with connected(device, tracker, key, wait) as remote:
        sweep = stage.sweep_thresholds(loaded, images, threads=threads, device=remote)
    chosen = stage.choose_points(sweep)
    if max_macs is not None:
        chosen[name] = stage.choose_within(sweep, max_macs)
    elif max_drop is not None:
        chosen |= stage.choose_points(sweep, {name: max_drop})
    loaded = store_points(loaded, chosen)
    result = stage.calibration(loaded, sweep, chosen)
    if json_out is not None and str(json_out) == "-":
        print(json.dumps(result))
        return
    if json_out is not None:
        from tvm_dynprune.bench.run import write_json

        write_json(result, json_out)
    _console().print(points_table(loaded.manifest))


@app.command()
def run(
    artifact: Annotated[Path, typer.Argument(help="Folder that compile wrote.")],
    data: Annotated[Optional[Path], typer.Option(help="Data folder.")] = None,  # noqa: UP045
    split: SplitName = "test",
    image: Annotated[Optional[Path], typer.Option(help="One image file.")] = None,  # noqa: UP045
    threshold: Annotated[Optional[float], typer.Option(help="For all gates.")] = None,  # noqa: UP045
    point: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Operating point that calibrate stored."),
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Compare with the reference outputs.")
    ] = False,
    threads: Threads = 1,
    device: Address = None,
    tracker: Tracker = None,
    key: Key = None,
    wait: Wait = 0.0,
    json_out: JsonOut = None,
) -> None:
    """Run images through an artifact, here or on a device."""
    from tvm_dynprune.bench.run import measure_run
    from tvm_dynprune.data import load_image, load_images
    from tvm_dynprune.runtime import Artifact, Session

    loaded = Artifact.load(artifact)
    if self_test:
        with connected(device, tracker, key, wait) as remote:
            result = Session(loaded, threads=threads, device=remote).self_test()
        verdict = "passed" if result.ok else "FAILED"
        _console().print(f"self-test {verdict}: error {result.max_abs_error:.1e} of scale")
        if not result.ok:
            raise typer.Exit(1)
        return
    if threshold is not None and point is not None:
        raise UserError("run: --threshold and --point both set the thresholds: give one")
    if (data is None) == (image is None):
        raise UserError("run: give --data DIR or --image FILE (or --self-test)")
    if image is not None:
        shape = loaded.manifest.input_shape
        images: Any = load_image(image, (shape[1], shape[2], shape[3]))
    else:
        assert data is not None
        names = loaded.manifest.classes or None
        images = load_images(data, _split(split), classes=names)
    with connected(device, tracker, key, wait) as remote:
        result = measure_run(
            loaded, images, threads=threads, threshold=threshold, point=point, device=remote
        )
    if image is not None and json_out is None:
        _console().print(f"class: {result['classes'][result['predictions'][0]]}")
    _show(result, json_out)


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="Artifact folder, or the name of a network.")],
    mac_cut: Annotated[Optional[float], typer.Option(help="Forced gates: MAC cut.")] = None,  # noqa: UP045
    open_fraction: Annotated[float, typer.Option(help="Forced gates: share of open groups.")] = 0.5,
    against: Annotated[
        str, typer.Option(help="Other engines: onnxruntime,openvino,mnn,ncnn,torch.")
    ] = "",
    group_size: Annotated[int, typer.Option(min=1)] = 16,
    lowering: Lowering = "auto",
    soc: SocName = "host",
    log: Log = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also time every layer.")] = False,
    inputs: Annotated[int, typer.Option(min=1, help="Random images.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 10,
    threads: Threads = 1,
    seed: Annotated[int, typer.Option()] = 0,
    device: Address = None,
    tracker: Tracker = None,
    key: Key = None,
    wait: Wait = 0.0,
    json_out: JsonOut = None,
) -> None:
    """Time the gated and the dense network, and other engines, in turns."""
    import tempfile

    from tvm_dynprune.bench.bench import measure_bench
    from tvm_dynprune.bench.device import measure_device_bench
    from tvm_dynprune.bench.engines import PEERS
    from tvm_dynprune.bench.forced import Gating, compile_forced, force_gates
    from tvm_dynprune.bench.inputs import random_images
    from tvm_dynprune.bench.layers import measure_layers
    from tvm_dynprune.progress import working
    from tvm_dynprune.runtime import Artifact
    from tvm_dynprune.soc import load_soc
    from tvm_dynprune.tables import layers_table

    for name, value in (("--mac-cut", mac_cut), ("--open-fraction", open_fraction)):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name} {value}: a fraction between 0 and 1")
    peers = [name for name in against.split(",") if name]
    if unknown := [name for name in peers if name not in PEERS]:
        raise UserError(f"--against {unknown[0]}: one or more of {','.join(PEERS)}")
    with tempfile.TemporaryDirectory() as folder:
        forced = None
        if Path(what).is_dir():
            if peers:
                raise UserError("--against runs networks by name: an artifact is ours alone")
            artifact = Artifact.load(what)
        else:
            with working(f"compiling {what} with forced gates"):
                gating = Gating(group_size, open_fraction, mac_cut, seed)
                forced = force_gates(what, gating, inputs)
                out = Path(folder) / "artifact"
                tuned = _tuned(log, load_soc(soc), lowering)
                artifact = compile_forced(
                    forced, out, soc=soc, lowering=_lowering(lowering), tuned=tuned
                )
        batch, *size = artifact.manifest.input_shape
        images = (
            random_images(inputs * batch, tuple(size), seed) if forced is None else forced.images
        )
        with connected(device, tracker, key, wait) as remote:
            if remote is None:
                result = measure_bench(
                    artifact,
                    images,
                    forced=forced,
                    against=peers,
                    threads=threads,
                    rounds=rounds,
                    seed=seed,
                )
            elif peers or layers:
                raise UserError("--against and --layers measure here, not on a device")
            else:
                result = measure_device_bench(
                    artifact, images, remote, forced=forced is not None, rounds=rounds, seed=seed
                )
        if layers:
            result["layers"] = measure_layers(artifact, images[:batch])
    _show(result, json_out)
    if layers and str(json_out) != "-":
        _console().print(layers_table(result["layers"]))


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
        _console().print(
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
        _console().print(f"{mark:<7} {check.name}: {check.detail}{advice}", highlight=False)
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


def _split(name: str) -> "Split":
    if name not in ("train", "test", "validation"):
        raise UserError(f"--split {name}: test, train or validation")
    return cast("Split", name)


def _lowering(name: str) -> str:
    from tvm_dynprune.passes.choose_lowering import LOWERINGS

    if name not in LOWERINGS:
        raise UserError(f"--lowering {name}: one of {', '.join(LOWERINGS)}")
    return name


def _tuned(log: Path | None, soc: Any, lowering: str) -> dict[str, Any] | None:
    """What a tuning log says of kernels on a SoC."""
    if log is None:
        return None
    if lowering != "auto":
        raise UserError(f"--log is for --lowering auto: {lowering} has schedules of its own")
    from tvm_dynprune.tune.log import check_info, read_info
    from tvm_dynprune.tune.open_cost import read_tuned

    check_info(log, read_info(log), dict(soc.target))
    return read_tuned(log)


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True)


def _show(result: dict[str, Any], json_out: Path | None) -> None:
    """Print the table, write the JSON, or print only the JSON."""
    from tvm_dynprune.bench.run import write_json
    from tvm_dynprune.tables import bench_table, run_table

    if json_out is not None and str(json_out) == "-":
        print(json.dumps(result))
        return
    if json_out is not None:
        write_json(result, json_out)
    table = bench_table if result["kind"] == "bench" else run_table
    _console().print(table(result))


__all__ = ["DataError", "app", "main"]
