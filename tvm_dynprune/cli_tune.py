# SPDX-License-Identifier: Apache-2.0
"""`tvm-dynprune tune …`: tune a network's kernels, and look at what came of it."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from tvm_dynprune.cli_device import Key, Tracker
from tvm_dynprune.cli_options import SocName, stdout_console
from tvm_dynprune.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from tvm_dynprune.frontend.model import Model
    from tvm_dynprune.soc import Soc
    from tvm_dynprune.tune.workers import Devices

CALIBRATION_IMAGES = 200


class _ModelFirst(TyperGroup):
    """``tune MODEL`` is short for ``tune model MODEL``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["model", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    no_args_is_help=True,
    cls=_ModelFirst,
    help="Tune a network's kernels: `tune MODEL …`; `tune show` says what came of it.",
)


@app.command()
def model(
    what: Annotated[str, typer.Argument(help=".pt2 or .onnx file, or the name of a network.")],
    soc: SocName = "host",
    out: Annotated[
        Optional[Path],  # noqa: UP045 (typer evaluates it on Python 3.10)
        typer.Option(help="Log to write [default: tuning_logs/SOC/NETWORK]."),
    ] = None,
    calibrate: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Images whose open lists the kernels are tuned for."),
    ] = None,
    minutes: Annotated[Optional[float], typer.Option(help="Stop after so long.")] = None,  # noqa: UP045
    trials: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Stop after so many trials of all kernels."),
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Tune the network without its gates, too.")
    ] = False,
    all_open: Annotated[
        bool, typer.Option("--all-open", help="Tune as if all gates were open.")
    ] = False,
    group_size: Annotated[int, typer.Option(min=1, help="Networks by name: forced gates.")] = 16,
    open_fraction: Annotated[float, typer.Option(help="Networks by name: of the groups.")] = 0.5,
    seed: Annotated[int, typer.Option()] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a log.")] = False,
    tracker: Tracker = None,
    key: Key = None,
) -> None:
    """Tune the kernels of a network at what its gates leave open on real images."""
    from tvm_dynprune.compiler import choose_kernels
    from tvm_dynprune.files import refuse_existing
    from tvm_dynprune.progress import working
    from tvm_dynprune.soc import load_soc
    from tvm_dynprune.tune.extract import extract_tasks
    from tvm_dynprune.tune.log import RunInfo
    from tvm_dynprune.tune.progress import Budget
    from tvm_dynprune.tune.tuner import tune

    if minutes is None and trials is None:
        raise UserError("tune: say when to stop: --minutes, --trials, or both")
    if not 0 < open_fraction <= 1:
        raise UserError(f"--open-fraction {open_fraction}: above 0 and at most 1")
    target = load_soc(soc)
    devices, unit = _devices(tracker, key, target)
    with working(f"importing {what}"):
        network, images = _network(what, calibrate, group_size, open_fraction, seed)
    folder = out or Path("tuning_logs") / target.name / network.name
    if not resume:
        refuse_existing(folder, force=False)
    with working(f"choosing the kernels of {network.name}"):
        chosen, calibration = choose_kernels(network, target, images)
        functions = ("main", "dense") if dense else ("main",)
        tasks = extract_tasks(chosen, target, None if all_open else calibration, functions)
    info = RunInfo(
        network=network.name,
        soc=target.name,
        target=dict(target.target),
        seed=seed,
        device="here" if devices is None else f"{key} of {tracker}",
        unit=unit,
        commands=[shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])],
    )
    with _live_table() as show:
        tune(tasks, target, folder, info, Budget(trials, minutes), show, devices)


def _devices(tracker: str | None, key: str | None, soc: "Soc") -> "tuple[Devices | None, str]":
    """Where kernels run, and what is counted there; a profile that lies is found out."""
    from tvm_dynprune.runtime.connect import parse_address, tracked_devices
    from tvm_dynprune.soc import missing_here, missing_on, required_features
    from tvm_dynprune.tune.measure import describe_device
    from tvm_dynprune.tune.workers import Devices

    features = required_features(soc)
    if tracker is None and key is None:
        if missing := missing_here(soc.target, features):
            raise UserError(
                f"--soc {soc.name} does not describe this machine, which lacks {missing}: name "
                "another profile (`soc detect` proposes one), or devices with --tracker and --key"
            )
        return None, "seconds"
    if tracker is None or key is None:
        raise UserError("--tracker and --key go together: HOST:PORT, and what devices are under")
    known = tracked_devices(tracker)
    if key not in known:
        names = ", ".join(known) or "no device at all"
        raise UserError(f"tracker {tracker} has nothing under key {key!r}: it has {names}")
    devices = Devices(parse_address(tracker), key)
    info = describe_device(devices.tracker, key)
    if info and (
        missing := missing_on(soc.target, features, info["architecture"], info["features"] or None)
    ):
        raise UserError(
            f"--soc {soc.name} does not describe the devices under {key!r} of tracker {tracker}, "
            f"which lack {missing}: name another profile; `soc detect` proposes one"
        )
    return devices, "instructions" if info.get("clock") == "instructions" else "seconds"


def _network(
    what: str, calibrate: Path | None, group_size: int, open_fraction: float, seed: int
) -> "tuple[Model, np.ndarray | None]":
    """A network from a file, or by name with forced gates; and images to calibrate it on."""
    from tvm_dynprune.bench.run import as_input
    from tvm_dynprune.data import load_images
    from tvm_dynprune.frontend.model import load_model

    if Path(what).suffix in (".onnx", ".pt2"):
        images = None
        if calibrate is not None:
            images = as_input(load_images(calibrate, "train").images[:CALIBRATION_IMAGES])
        return load_model(what), images
    if calibrate is not None:
        raise UserError("--calibrate: a network by name has forced gates, and random images")
    from tvm_dynprune.bench.forced import Gating, force_gates, forced_model

    forced = force_gates(what, Gating(group_size, open_fraction, None, seed))
    return forced_model(forced), forced.images


def _live_table() -> Any:
    """Context manager: a function that shows a `Progress`, in place on a terminal."""
    from contextlib import contextmanager

    from rich.live import Live

    from tvm_dynprune.progress import console
    from tvm_dynprune.tables import tuning_table

    @contextmanager
    def shown() -> Any:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda progress: live.update(tuning_table(progress), refresh=True)

    return shown()


@app.command()
def show(
    log: Annotated[Path, typer.Argument(help="Folder that tune wrote.")],
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="SVG file to write: best time against trials."),
    ] = None,
    plot_costs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="SVG file to write: fitted against measured time of open sets."),
    ] = None,
) -> None:
    """The best schedule of each kernel, and its time against open channels."""
    from tvm_dynprune.report import tuning_plot
    from tvm_dynprune.tables import costs_table, log_table
    from tvm_dynprune.tune.best import read_best
    from tvm_dynprune.tune.curve import tuning_curve
    from tvm_dynprune.tune.log import read_info, read_trials
    from tvm_dynprune.tune.open_cost import cost_rows, held_out_errors, read_costs

    info, best, trials = read_info(log), read_best(log), list(read_trials(log))
    costs = list(read_costs(log))
    stdout_console().print(log_table(info, best.values(), trials))
    if costs:
        stdout_console().print(
            costs_table(cost_rows(best, costs), held_out_errors(costs), info.unit)
        )
    elif plot_costs is not None:
        raise UserError(f"{log}: no times against open channels; `tune --resume` measures them")
    if plot is not None:
        tuning_plot.plot_curves({log.name: tuning_curve(best.values(), trials)}, plot)
    if plot_costs is not None:
        tuning_plot.plot_costs(costs, plot_costs)


@app.command()
def prune(
    log: Annotated[Path, typer.Argument(help="Folder that tune wrote.")],
    keep: Annotated[int, typer.Option(min=1, help="Records of each kernel to keep.")] = 3,
) -> None:
    """Keep a log's best records and the list of its trials; what it compiles to stays the same."""
    from tvm_dynprune.tune.best import prune_log

    before, after = prune_log(log, keep)
    print(f"{log}: {after} of {before} records kept")


@app.command()
def merge(
    logs: Annotated[list[Path], typer.Argument(help="Folders that tune wrote, of one target.")],
    out: Annotated[Path, typer.Option(help="Log to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace --out.")] = False,
) -> None:
    """Make one log of several: of other networks, machines or nights."""
    from tvm_dynprune.tune.merge import merge_logs

    trials, records = merge_logs(logs, out, force=force)
    print(f"{out}: {trials} trials, {records} records")
