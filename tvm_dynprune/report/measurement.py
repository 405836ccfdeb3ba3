# SPDX-License-Identifier: Apache-2.0
"""The measurement files that `run --json`, `demo` and `bench --json` write, and their reader.

A file's JSON object has the fields of `Run` or `Bench` by the same names, and ``kind`` ("run" or
"bench"). Fields that a later version adds are ignored; missing or ill-typed ones are errors.
"""

import json
import math
import types
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import numpy as np

from tvm_dynprune.errors import DataError

T = TypeVar("T")


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


KINDS: dict[str, type[Run] | type[Bench]] = {"run": Run, "bench": Bench}


def read_measurement(path: Path) -> Run | Bench:
    """Read one measurement file.

    Raises
    ------
    DataError
        The file cannot be read, is no JSON, or is no measurement; one line with file and field.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file: {error}") from None
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise DataError(
            f"{path}: not a measurement (its kind is neither 'run' nor 'bench'); "
            "`tvm-dynprune run --json` and `bench --json` write them"
        )
    try:
        measurement = _convert(KINDS[kind], data, "")
        measurement.check()
    except ValueError as error:
        raise DataError(f"{path}: not a {kind} measurement: {error}") from None
    return measurement


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Return JSON `value` as type `kind`; ValueError names the field that `where` leads to."""
    if isinstance(kind, types.UnionType):
        rest = [option for option in get_args(kind) if option is not type(None)]
        return None if value is None else _convert(rest[0], value, where)
    if get_origin(kind) is list and isinstance(value, list):
        (item,) = get_args(kind)
        return [_convert(item, one, f"{where}[{i}]") for i, one in enumerate(value)]
    if get_origin(kind) is dict and isinstance(value, dict):
        item = get_args(kind)[1]
        return {key: _convert(item, one, f"{where}.{key}") for key, one in value.items()}
    if is_dataclass(kind) and isinstance(value, dict):
        return _convert_fields(kind, value, where)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and number and math.isfinite(value):
        return float(value)
    if kind is int and number and math.isfinite(value) and value == int(value):
        return int(value)
    if kind is str and isinstance(value, str):
        return value
    wanted = getattr(kind, "__name__", str(kind))
    raise ValueError(f"{where or 'the file'} = {str(value)[:40]} is not of type {wanted}")


def _convert_fields(kind: Any, value: dict[str, Any], where: str) -> Any:
    prefix = f"{where}." if where else ""
    found = {}
    for field in fields(kind):
        if field.name in value:
            found[field.name] = _convert(field.type, value[field.name], prefix + field.name)
        elif field.default is not None:
            raise ValueError(f"{prefix}{field.name} is missing")
    return kind(**found)


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
