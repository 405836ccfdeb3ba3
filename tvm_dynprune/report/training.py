# SPDX-License-Identifier: Apache-2.0
"""Trainings: the ``checkpoint.json`` and ``log.jsonl`` that `train` writes, and their readers.

Fields that a later version adds are ignored. A log of an earlier version may lack whatever has a
default here; a page shows what there is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_dynprune.errors import DataError
from tvm_dynprune.report.fields import check_fraction, convert, parse_json, read_text

FRACTIONS = (
    "validation_accuracy",
    "validation_accurate_accuracy",
    "validation_open_fraction",
    "test_accuracy",
    "test_accurate_accuracy",
)


@dataclass(frozen=True)
class Epoch:
    """What an epoch ended with; ``accurate`` is measured at the lowest thresholds trained for.

    ``gates`` is each gate's mean open fraction on the validation images, and ``latency_fraction``
    the expected share of the dense latency. MAC cuts count the gates' own work, and so are slightly
    negative while everything is open.
    """

    epoch: int
    loss: float
    validation_accuracy: float
    validation_mac_cut: float | None = None
    validation_accurate_accuracy: float | None = None
    validation_accurate_mac_cut: float | None = None
    validation_open_fraction: float | None = None
    validation_latency_fraction: float | None = None
    gates: dict[str, float] | None = None
    seconds: float | None = None
    test_accuracy: float | None = None
    test_mac_cut: float | None = None
    test_accurate_accuracy: float | None = None
    test_accurate_mac_cut: float | None = None

    def check(self, where: str) -> None:
        """Raise ValueError, with the field's name after `where`, if a value cannot be."""
        if self.epoch < 1:
            raise ValueError(f"{where}.epoch = {self.epoch} is not 1 or more")
        for name in FRACTIONS:
            check_fraction(getattr(self, name), f"{where}.{name}")
        for gate, open_fraction in (self.gates or {}).items():
            check_fraction(open_fraction, f"{where}.gates.{gate}")


@dataclass(frozen=True)
class Options:
    """What a training was asked for."""

    epochs: int | None = None
    budget: float | None = None
    accurate_budget: float | None = None
    start: str | None = None
    distill: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Training:
    """A training so far: `name` tells it from others; a bare log knows its history only."""

    name: str
    history: list[Epoch]
    network: str | None = None
    classes: list[str] | None = None
    gate: str | None = None
    group_size: int | None = None
    training: Options | None = None
    versions: dict[str, str] | None = None

    @property
    def last(self) -> Epoch:
        """The last epoch."""
        return self.history[-1]

    @property
    def is_dense(self) -> bool:
        """Whether it has no gates; of a bare log, whether it tells of no MAC cut."""
        if self.network is not None:
            return self.gate is None
        return self.last.validation_mac_cut is None

    @property
    def title(self) -> str:
        """What legends and headings call it."""
        if self.network is None:
            return self.name
        if self.gate is None:
            return f"{self.network}, dense" + ("" if self.name == "dense" else f" ({self.name})")
        return f"{self.network}, {self.gate} in groups of {self.group_size} ({self.name})"

    def check(self) -> None:
        """Raise ValueError, with the field's name, if there is nothing to show or it cannot be."""
        if not self.history:
            raise ValueError("history is empty")
        for index, epoch in enumerate(self.history):
            epoch.check(f"history[{index}]")


def read_training(path: Path) -> Training:
    """Read the ``checkpoint.json`` of a training, which is named after its folder.

    Raises
    ------
    DataError
        The file cannot be read, is no JSON, or is no checkpoint's; one line with file and field.
    """
    if not path.is_file():
        raise DataError(f"{path}: No such file; `tvm-dynprune train` writes a checkpoint's folder")
    data = parse_json(read_text(path), path)
    if not isinstance(data, dict):
        raise DataError(f"{path}: not a checkpoint's JSON")
    if "network" not in data:
        raise DataError(f"{path}: not a checkpoint's JSON: network is missing")
    return _make(path, {**data, "name": path.absolute().parent.name})


def read_log(path: Path) -> Training:
    """Read a ``log.jsonl`` alone, one JSON object a line; a later line of an epoch replaces it.

    It is named by the file's stem, or by its folder if that is just "log".

    Raises
    ------
    DataError
        The file cannot be read, or a line is no epoch; one line with file, line and field.
    """
    records: dict[Any, Any] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = parse_json(line, where)
        try:
            epoch = convert(Epoch, record)
            epoch.check("the record")
        except ValueError as error:
            raise DataError(f"{where}: not an epoch of a training: {error}") from None
        records[epoch.epoch] = record
    name = path.absolute().parent.name if path.stem == "log" else path.stem
    return _make(path, {"name": name, "history": list(records.values())})


def _make(path: Path, data: dict[str, Any]) -> Training:
    try:
        training = convert(Training, data)
        training.check()
    except ValueError as error:
        raise DataError(f"{path}: not a training: {error}") from None
    return training
