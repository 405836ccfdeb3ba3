# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 in their published binary format."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_dynprune.data.labelled import LabelledImages, UInt8Array
from tvm_dynprune.errors import DataError

CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets.

    Attributes
    ----------
    label_bytes
        Labels before each image; the last of them is the one that counts.
    names
        File with a class name per line.
    classes
        Class names where that file is missing.
    """

    folder: str
    files: dict[str, tuple[str, ...]]
    label_bytes: int
    names: str
    classes: tuple[str, ...]


FORMATS = (
    Cifar(
        "cifar-10-batches-bin",
        {
            "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        1,
        "batches.meta.txt",
        CIFAR10,
    ),
    Cifar(
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        2,
        "fine_label_names.txt",
        tuple(str(i) for i in range(100)),
    ),
)


def find_cifar(directory: Path, split: str) -> tuple[Cifar, Path] | None:
    """Return the format and the folder of a split, in `directory` or one below; None if none."""
    for cifar in FORMATS:
        for folder in (directory, directory / cifar.folder):
            if (folder / cifar.files[split][0]).is_file():
                return cifar, folder
    return None


def load_cifar(
    cifar: Cifar, folder: Path, split: str, *, classes: tuple[str, ...] | None
) -> LabelledImages:
    """Read all files of a split.

    Raises
    ------
    DataError
        A file is missing or is not a whole number of records.
    """
    records = np.concatenate([_read(cifar, folder / name) for name in cifar.files[split]])
    labels = records[:, cifar.label_bytes - 1].astype(np.int64)
    images = np.ascontiguousarray(records[:, cifar.label_bytes :]).reshape(-1, *_SHAPE)
    return LabelledImages(images, labels, classes or _classes(cifar, folder))


def _read(cifar: Cifar, path: Path) -> UInt8Array:
    if not path.is_file():
        names = cifar.files["train"]
        raise DataError(f"{path}: missing: the train split is {names[0]} to {names[-1]}")
    record = cifar.label_bytes + int(np.prod(_SHAPE))
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if len(content) == 0 or len(content) % record:
        raise DataError(
            f"{path}: {len(content)} bytes are not a whole number of {record}-byte records: "
            "download it again"
        )
    return content.reshape(-1, record)


def _classes(cifar: Cifar, folder: Path) -> tuple[str, ...]:
    names = folder / cifar.names
    return tuple(names.read_text(encoding="utf-8").split()) if names.is_file() else cifar.classes
