# SPDX-License-Identifier: Apache-2.0
"""A folder of image files per class."""

from pathlib import Path

import numpy as np

from tvm_dynprune.data.image_files import IMAGE_SUFFIXES, describe_size, read_image
from tvm_dynprune.data.labelled import LabelledImages, UInt8Array
from tvm_dynprune.errors import DataError


def find_class_folders(directory: Path, split: str) -> Path | None:
    """Return the folder that holds a split's class folders; None if there is none."""
    if (directory / "train").is_dir() or (directory / "test").is_dir():
        directory = directory / split
    if not directory.is_dir():
        return None
    return directory if any(_image_files(folder) for folder in _folders(directory)) else None


def _folders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir())


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def load_class_folders(root: Path, *, classes: tuple[str, ...] | None) -> LabelledImages:
    """Read all images of all classes.

    Raises
    ------
    DataError
        A class has no folder, there are no images, or they differ in size or mode.
    """
    names = classes or tuple(folder.name for folder in _folders(root) if _image_files(folder))
    images: list[UInt8Array] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if not (root / name).is_dir():
            raise DataError(f"{root}: no folder for class {name!r}: it has {_listed(root)}")
        for path in _image_files(root / name):
            pixels = read_image(path)
            if images and pixels.shape != images[0].shape:
                raise DataError(
                    f"{path}: image is {describe_size(pixels)}, the ones before it are "
                    f"{describe_size(images[0])}: make all images equal in size and mode"
                )
            images.append(pixels)
            labels.append(label)
    if not images:
        raise DataError(f"{root}: no images of the classes {', '.join(names)}: check the folders")
    return LabelledImages(np.stack(images), np.array(labels, dtype=np.int64), names)


def _listed(root: Path) -> str:
    return ", ".join(folder.name for folder in _folders(root))
