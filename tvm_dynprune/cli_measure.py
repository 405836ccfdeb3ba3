# SPDX-License-Identifier: Apache-2.0
"""`tvm-dynprune run`, `calibrate` and `bench`: what a compiled network gives and takes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, cast

import typer

from tvm_dynprune.cli_device import Address, Key, Tracker, Wait, connected
from tvm_dynprune.cli_options import (
    JsonOut,
    Log,
    Lowering,
    SocName,
    Threads,
    checked_lowering,
    show,
    stdout_console,
    tuned_kernels,
)
from tvm_dynprune.errors import UserError
from tvm_dynprune.load_tvm import load_tvm

if TYPE_CHECKING:
    from tvm_dynprune.data import Split

SplitName = Annotated[
    str, typer.Option(help="test, train, or validation: what train holds out of train.")
]


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
    load_tvm(compiler=False)
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
        stdout_console().print(points_table(loaded.manifest))
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
    stdout_console().print(points_table(loaded.manifest))


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
    load_tvm(compiler=False)
    from tvm_dynprune.bench.run import measure_run
    from tvm_dynprune.data import load_image, load_images
    from tvm_dynprune.runtime import Artifact, Session

    loaded = Artifact.load(artifact)
    if self_test:
        with connected(device, tracker, key, wait) as remote:
            result = Session(loaded, threads=threads, device=remote).self_test()
        verdict = "passed" if result.ok else "FAILED"
        stdout_console().print(f"self-test {verdict}: error {result.max_abs_error:.1e} of scale")
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
        stdout_console().print(f"class: {result['classes'][result['predictions'][0]]}")
    show(result, json_out)


def bench(
    what: Annotated[str, typer.Argument(help="Artifact folder, model file, or name of a network.")],
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
    from tvm_dynprune.bench.forced import Gating
    from tvm_dynprune.bench.layers import measure_layers
    from tvm_dynprune.bench.subject import load_subject
    from tvm_dynprune.progress import working
    from tvm_dynprune.soc import load_soc
    from tvm_dynprune.tables import layers_table

    for name, value in (("--mac-cut", mac_cut), ("--open-fraction", open_fraction)):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name} {value}: a fraction between 0 and 1")
    peers = [name for name in against.split(",") if name]
    if unknown := [name for name in peers if name not in PEERS]:
        raise UserError(f"--against {unknown[0]}: one or more of {','.join(PEERS)}")
    with tempfile.TemporaryDirectory() as folder:
        with working(f"preparing {what}"):
            subject = load_subject(
                what,
                Path(folder),
                gating=Gating(group_size, open_fraction, mac_cut, seed),
                inputs=inputs,
                soc=soc,
                lowering=checked_lowering(lowering),
                tuned=tuned_kernels(log, load_soc(soc), lowering),
            )
        artifact, images = subject.artifact, subject.images
        with connected(device, tracker, key, wait) as remote:
            if remote is None:
                result = measure_bench(
                    subject, against=peers, threads=threads, rounds=rounds, seed=seed
                )
            elif peers or layers:
                raise UserError("--against and --layers measure here, not on a device")
            else:
                result = measure_device_bench(
                    artifact, images, remote, forced=subject.is_forced, rounds=rounds, seed=seed
                )
        if layers:
            batch = artifact.manifest.input_shape[0]
            result["layers"] = measure_layers(artifact, images[:batch])
    show(result, json_out)
    if layers and str(json_out) != "-":
        stdout_console().print(layers_table(result["layers"]))


def _split(name: str) -> "Split":
    if name not in ("train", "test", "validation"):
        raise UserError(f"--split {name}: test, train or validation")
    return cast("Split", name)
