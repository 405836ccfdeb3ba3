# SPDX-License-Identifier: Apache-2.0
"""Labelled images from the data sets' own published files; NumPy and Pillow only.

Four formats are read, and recognised by the files that are there:

========================  ==========================================================================
IDX (MNIST, Fashion-      ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-…``, each
MNIST)                    plain or with ``.gz``
``cifar-10-batches-bin``  ``data_batch_1.bin`` … ``data_batch_5.bin``, ``test_batch.bin``; the
                          directory itself or its parent
``cifar-100-binary``      ``train.bin``, ``test.bin``; the same, with the fine labels
a folder per class        ``train/<class>/*.png`` and ``test/<class>/*.png``; without those two
                          folders ``<class>/*.png`` serves both splits
========================  ==========================================================================
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tvm_dynprune.data.cifar import FORMATS, find_cifar, load_cifar
from tvm_dynprune.data.class_folders import find_class_folders, load_class_folders
from tvm_dynprune.data.idx import PREFIX, find_idx, load_idx
from tvm_dynprune.data.labelled import LabelledImages, Split
from tvm_dynprune.errors import DataError


def load_images(
    directory: Path, split: Split, *, classes: Sequence[str] | None = None
) -> LabelledImages:
    """Read one split of the data set that lies in `directory`.

    Parameters
    ----------
    directory
        A directory in one of the formats of this module's docstring.
    split
        Which part to read; "validation" is what `hold_out` holds out of "train".
    classes
        Class names in label order. With a folder per class they say which folder has which label
        (None: alphabetical order); otherwise they replace the names known for the format.

    Returns
    -------
    LabelledImages
        All images of the split, in the order of the files.

    Raises
    ------
    DataError
        The data is not there, is damaged, or the images differ in size or mode.
    """
    directory = Path(directory)
    names = None if classes is None else tuple(classes)
    if split == "validation":
        return hold_out(load_images(directory, "train", classes=classes))[1]
    if (idx := find_idx(directory, split)) is not None:
        data = load_idx(*idx, classes=names)
    elif (cifar := find_cifar(directory, split)) is not None:
        data = load_cifar(*cifar, split, classes=names)
    elif (root := find_class_folders(directory, split)) is not None:
        data = load_class_folders(root, classes=names)
    else:
        raise DataError(_nothing_found(directory, split))
    if len(data) == 0:
        raise DataError(f"{directory}: the {split} split has no images: check the files")
    if data.labels.max() >= len(data.classes) or data.labels.min() < 0:
        raise DataError(
            f"{directory}: label {data.labels.max()} in the {split} split, but only "
            f"{len(data.classes)} classes are known: pass their names, or check the label file"
        )
    return data


def hold_out(data: LabelledImages, held: int = 5000) -> tuple[LabelledImages, LabelledImages]:
    """Split training images into those to train on and those held out for validation.

    `held` images are held out, but at most a fifth; which ones depends on the number of images
    only.
    """
    order = np.random.default_rng(1).permutation(len(data))
    held = min(held, len(data) // 5)
    first, second = (
        LabelledImages(data.images[part], data.labels[part], data.classes)
        for part in (order[held:], order[:held])
    )
    return first, second


def has_split(directory: Path, split: Split) -> bool:
    """Whether `directory` has files of its own for `split` (a flat folder per class has not)."""
    directory = Path(directory)
    return (
        find_idx(directory, split) is not None
        or find_cifar(directory, split) is not None
        or find_class_folders(directory, split) == directory / split
    )


def _nothing_found(directory: Path, split: Split) -> str:
    if not directory.is_dir():
        return f"{directory}: no such directory: give the directory with the data set's own files"
    return (
        f"{directory}: no {split} images: looked for {PREFIX[split]}-images-idx3-ubyte[.gz], "
        f"{', '.join(f'{c.folder}/{c.files[split][0]}' for c in FORMATS)} and "
        f"{split}/<class>/*.png: "
        "give the directory with the data set's own files"
    )
