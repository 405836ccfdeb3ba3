# SPDX-License-Identifier: Apache-2.0
"""Published results to draw one's own beside: ``records.toml`` and its reader."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tvm_dynprune.report.fields import convert

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True)
class Record:
    """One published result; accuracies and the MAC cut in percent, `source` an address.

    ``measured_by`` names the method whose authors measured it, if not its own.
    """

    method: str
    network: str
    year: int
    accuracy_dense: float
    accuracy: float
    mac_cut: float
    source: str
    measured_by: str | None = None

    @property
    def change(self) -> float:
        """Accuracy against the same authors' dense network, in percentage points."""
        return self.accuracy - self.accuracy_dense


@dataclass(frozen=True)
class DataSet:
    """What the records were measured on."""

    name: str
    classes: list[str]


@dataclass(frozen=True)
class Records:
    """Published results on one data set."""

    data_set: DataSet
    record: list[Record]


def read_records() -> Records:
    """Read the records that ship with the package."""
    path = Path(__file__).with_name("records.toml")
    return convert(Records, tomllib.loads(path.read_text(encoding="utf-8")))
