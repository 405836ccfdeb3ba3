# SPDX-License-Identifier: Apache-2.0
"""CIFAR-100's binary files: two labels an image, of which the fine one counts."""

from pathlib import Path

import numpy as np
import pytest

from tvm_dynprune.data import has_split, load_images
from tvm_dynprune.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)


def write(folder: Path, fine: tuple[int, ...] = (99, 0, 42)) -> Path:
    folder.mkdir(parents=True)
    labels = np.array([(7, label) for label in fine], np.uint8)
    content = np.concatenate([labels, PIXELS], axis=1).tobytes()
    (folder / "train.bin").write_bytes(content)
    return folder


def test_fine_labels(tmp_path: Path) -> None:
    write(tmp_path / "cifar-100-binary")
    data = load_images(tmp_path, "train")
    assert data.labels.tolist() == [99, 0, 42]
    assert np.array_equal(data.images.reshape(3, -1), PIXELS)
    assert len(data.classes) == 100
    assert not has_split(tmp_path, "test")


def test_class_names_from_the_file_beside(tmp_path: Path) -> None:
    folder = write(tmp_path / "cifar100", fine=(1, 0, 1))
    (folder / "fine_label_names.txt").write_text("apple\naquarium_fish\n")
    assert load_images(folder, "train").classes == ("apple", "aquarium_fish")


def test_label_out_of_range(tmp_path: Path) -> None:
    folder = write(tmp_path / "cifar100", fine=(1, 0, 100))
    with pytest.raises(DataError, match="label 100 in the train split, but only 100 classes"):
        load_images(folder, "train")


def test_truncated(tmp_path: Path) -> None:
    folder = write(tmp_path / "cifar100")
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match="not a whole number of 3074-byte records"):
        load_images(folder, "train")
