# SPDX-License-Identifier: Apache-2.0
"""What `report` takes, told apart by what it is and not by its name."""

from pathlib import Path

from tvm_dynprune.report.fields import parse_json, read_text
from tvm_dynprune.report.measurement import Bench, Calibration, Run, read_measurement
from tvm_dynprune.report.training import Training, read_log, read_training

Input = Run | Bench | Calibration | Training
INFO = "checkpoint.json"


def read_input(path: Path) -> Input:
    """Read a measurement, or a training: a checkpoint folder, its JSON or a log of epochs.

    Raises
    ------
    DataError
        It is none of them; one line with file and field.
    """
    if path.is_dir():
        return read_training(path / INFO)
    if path.suffix == ".jsonl":
        return read_log(path)
    data = parse_json(read_text(path), path)
    if isinstance(data, dict) and "history" in data and "kind" not in data:
        return read_training(path)
    return read_measurement(path)
