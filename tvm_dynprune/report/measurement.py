# SPDX-License-Identifier: Apache-2.0
"""The measurement files that `run`, `bench` and `calibrate` write with `--json`, and their reader.

A file's JSON object has the fields of `Run`, `Bench` or `Calibration` by the same names, and
``kind`` ("run", "bench" or "calibration"). Fields that a later version adds are ignored; missing or
ill-typed ones are errors.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_dynprune.errors import DataError
from tvm_dynprune.report.fields import check_fraction, convert, parse_json, read_text


@dataclass(frozen=True)
class Provenance:
    """Where a measurement comes from."""

    command: str
    date: str
    machine: str
    versions: dict[str, str]
    seed: int | None = None


@dataclass(frozen=True)
class Gate:
    """What one gate did over all images; fractions are means of its 0/1 decisions."""

    name: str
    groups: int
    group_size: int
    open_fraction: float
    open_fraction_by_group: list[float]
    open_fraction_by_class: list[float] | None = None


@dataclass(frozen=True)
class Agreement:
    """On how many images the class equals that of a reference implementation."""

    reference: str
    equal: int
    of: int


@dataclass(frozen=True)
class Point:
    """One operating point: every threshold raised by `threshold_shift`."""

    threshold_shift: float
    accuracy: float
    mac_cut: float
    median_ms: float


@dataclass(frozen=True)
class Run:
    """Real images through one compiled network; lists without other word are one value per image.

    ``macs`` are multiply-accumulates, latencies milliseconds, fractions between 0 and 1. A device
    that counts instructions gives those, and no latencies.
    """

    network: str
    soc: str
    lowering: str
    threads: int
    images: int
    classes: list[str]
    predictions: list[int]
    macs_dense: int
    macs: list[float]
    latency_ms: list[float]
    open_fraction: list[float]
    gates: list[Gate]
    mac_cut: float
    provenance: Provenance
    labels: list[int] | None = None
    accuracy: float | None = None
    latency_dense_ms: list[float] | None = None
    realised_fraction: float | None = None
    max_abs_error: float | None = None
    agreement: Agreement | None = None
    points: list[Point] | None = None
    instructions: list[float] | None = None
    instructions_dense: list[float] | None = None
    point: str | None = None
    split: str | None = None

    @property
    def cost(self) -> list[float]:
        """What each image took, in `cost_unit`."""
        return self.latency_ms or [count / 1e6 for count in self.instructions or []]

    @property
    def cost_dense(self) -> list[float] | None:
        """What each image took without gates, in `cost_unit`."""
        counts = self.instructions_dense
        return self.latency_dense_ms or (counts and [count / 1e6 for count in counts])

    @property
    def cost_unit(self) -> str:
        """Milliseconds, or millions of instructions."""
        return "ms" if self.latency_ms else "M instructions"

    def check(self) -> None:
        """Raise ValueError, with the field's name, if two fields contradict each other."""
        cost = "latency_ms" if self.instructions is None else "instructions"
        for name in ("predictions", "macs", cost, "open_fraction", "labels"):
            values = getattr(self, name)
            if values is not None and len(values) != self.images:
                raise ValueError(f"{name} has {len(values)} values for {self.images} images")
        if self.images < 1 or self.macs_dense < 1 or self.latency_dense_ms == []:
            raise ValueError("images, macs_dense or latency_dense_ms is empty")
        for name in ("predictions", "labels"):
            values = getattr(self, name) or []
            if any(not 0 <= value < len(self.classes) for value in values):
                raise ValueError(f"{name} has a class beyond the {len(self.classes)} in classes")
        for gate in self.gates:
            if len(gate.open_fraction_by_group) != gate.groups:
                raise ValueError(f"gate {gate.name}: open_fraction_by_group has not {gate.groups}")
            by_class = gate.open_fraction_by_class
            if by_class is not None and len(by_class) != len(self.classes):
                raise ValueError(f"gate {gate.name}: open_fraction_by_class is not one per class")


@dataclass(frozen=True)
class Engine:
    """Latencies of one engine, in milliseconds over `runs` inferences."""

    median_ms: float
    p95_ms: float
    runs: int
    min_ms: float | None = None
    max_ms: float | None = None


@dataclass(frozen=True)
class Bench:
    """Engines in turns on one network; ours are ``dynprune`` and ``dynprune_dense``."""

    network: str
    soc: str
    threads: int
    engines: dict[str, Engine]
    provenance: Provenance
    mac_cut: float | None = None
    open_fraction: float | None = None
    speedup_vs_dense: float | None = None
    speedup_vs_best_peer: float | None = None
    realised_fraction: float | None = None
    max_abs_error: float | None = None

    def check(self) -> None:
        """Raise ValueError if there is nothing to show."""
        if not self.engines:
            raise ValueError("engines is empty")


@dataclass(frozen=True)
class OperatingPoint:
    """What all thresholds shifted by `threshold_shift` logits gave on `images` images.

    ``mac_fraction`` is the executed share of the dense MACs.
    """

    threshold_shift: float
    accuracy: float
    mac_fraction: float
    images: int

    @property
    def mac_cut(self) -> float:
        """The share of the dense MACs that was not executed."""
        return 1 - self.mac_fraction


@dataclass(frozen=True)
class Calibration:
    """Operating points over a range of thresholds, and those of them that have a name."""

    network: str
    sweep: list[OperatingPoint]
    points: dict[str, OperatingPoint]
    provenance: Provenance

    def check(self) -> None:
        """Raise ValueError, with the field's name, if there is nothing to show or no fraction."""
        if not self.sweep:
            raise ValueError("sweep is empty")
        swept = {f"sweep[{i}]": point for i, point in enumerate(self.sweep)}
        named = {f"points.{name}": point for name, point in self.points.items()}
        for where, point in (swept | named).items():
            check_fraction(point.accuracy, f"{where}.accuracy")
            if point.mac_fraction < 0:
                raise ValueError(f"{where}.mac_fraction = {point.mac_fraction:g} is negative")


KINDS: dict[str, type[Run] | type[Bench] | type[Calibration]] = {
    "run": Run,
    "bench": Bench,
    "calibration": Calibration,
}


def read_measurement(path: Path) -> Run | Bench | Calibration:
    """Read one measurement file.

    Raises
    ------
    DataError
        The file cannot be read, is no JSON, or is no measurement; one line with file and field.
    """
    data = parse_json(read_text(path), path)
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise DataError(
            f"{path}: not a measurement (its kind is none of {', '.join(KINDS)}); `tvm-dynprune "
            "run --json`, `bench --json` and `calibrate --json` write them"
        )
    try:
        measurement = convert(KINDS[kind], data)
        measurement.check()
    except ValueError as error:
        raise DataError(f"{path}: not a {kind} measurement: {error}") from None
    return measurement


@dataclass(frozen=True)
class ClassSummary:
    """One class of images in a `Run`; `open_fraction`, `macs` and `accuracy` are means."""

    name: str
    images: int
    accuracy: float | None
    open_fraction: float
    macs: float
    median_cost: float  # in the run's unit


def summarise_classes(run: Run) -> list[ClassSummary]:
    """Return the classes that occur, cheapest first; by label, or by prediction without labels."""
    group = np.array(run.predictions if run.labels is None else run.labels)
    correct = None if run.labels is None else np.array(run.predictions) == group
    macs, open_fraction = np.array(run.macs), np.array(run.open_fraction)
    cost = np.array(run.cost)
    summaries = [
        ClassSummary(
            name=run.classes[index],
            images=int((group == index).sum()),
            accuracy=None if correct is None else float(correct[group == index].mean()),
            open_fraction=float(open_fraction[group == index].mean()),
            macs=float(macs[group == index].mean()),
            median_cost=float(np.median(cost[group == index])),
        )
        for index in np.unique(group)
    ]
    return sorted(summaries, key=lambda summary: summary.macs)
