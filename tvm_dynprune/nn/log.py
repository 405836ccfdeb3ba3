# SPDX-License-Identifier: Apache-2.0
"""What a training writes for people and plots: ``log.jsonl``, ``log.csv``, TensorBoard.

All are written from the checkpoint's history, so that none has an epoch twice or lacks one,
wherever the training was interrupted.
"""

import csv
import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tvm_dynprune.errors import CheckpointError, ToolError
from tvm_dynprune.files import remove, write_atomic
from tvm_dynprune.nn.checkpoint import LOG

LOG_CSV, TENSORBOARD = "log.csv", "tensorboard"
History = Iterable[Mapping[str, Any]]


class TrainingLog:
    """The logs of one training.

    Parameters
    ----------
    folder
        The checkpoint's.
    tensorboard
        Whether to write for TensorBoard too.

    Raises
    ------
    ToolError
        TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        if tensorboard and find_spec("tensorboard") is None:
            raise ToolError("--tensorboard needs tensorboard: pip install tensorboard")
        self.folder, self.tensorboard = folder, tensorboard
        self._writer: Any = None
        self._written: set[tuple[str, int]] = set()

    def write(self, history: History) -> None:
        """Bring all logs up to a history of records, one an epoch.

        Raises
        ------
        CheckpointError
            They cannot be written, as on a full disk.
        """
        history = list(history)
        try:
            with write_atomic(self.folder / LOG) as path:
                path.write_text("".join(json.dumps(r) + "\n" for r in history), encoding="utf-8")
            _write_csv(self.folder / LOG_CSV, history)
            if self.tensorboard:
                self._write_scalars(history)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: the log cannot be written ({error}); the checkpoint of epoch "
                f"{history[-1]['epoch']} is whole: make room, then --resume"
            ) from None

    def _write_scalars(self, history: History) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            remove(self.folder / TENSORBOARD)  # what came before a resume is written again
            self._writer = SummaryWriter(str(self.folder / TENSORBOARD))
        for record in history:
            epoch = record["epoch"]
            for tag, value in _tagged(record).items():
                if (tag, epoch) not in self._written:
                    self._written.add((tag, epoch))
                    self._writer.add_scalar(tag, value, epoch)
        self._writer.flush()


def _write_csv(path: Path, history: History) -> None:
    """Write the records' numbers, a column for each name that any of them has."""
    rows = [_scalars(record) for record in history]
    columns = dict.fromkeys(name for row in rows for name in row)
    with write_atomic(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, (int, float))}


def _tagged(record: Mapping[str, Any]) -> dict[str, float]:
    """Return a record's numbers under TensorBoard's names, where a slash makes a group."""
    gates = (
        {f"gates/{name.removeprefix('gates.')}": v for name, v in record["gates"].items()}
        if ("gates" in record)
        else {}
    )
    return {name: v for name, v in _scalars(record).items() if name != "epoch"} | gates
