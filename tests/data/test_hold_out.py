# SPDX-License-Identifier: Apache-2.0
"""The validation split: what training holds out, the same for everybody."""

from pathlib import Path

import numpy as np
import pytest

from tests.nn.util import write_data
from tvm_dynprune.data import LabelledImages, hold_out, load_images
from tvm_dynprune.errors import DataError
from tvm_dynprune.nn.batches import split


def numbered(count: int) -> LabelledImages:
    """Each image's label is its number."""
    return LabelledImages(
        np.zeros((count, 1, 2, 2), np.uint8), np.arange(count), tuple(map(str, range(count)))
    )


@pytest.mark.parametrize(("count", "held", "wanted"), [(100, 10, 10), (100, 5000, 20), (4, 5, 0)])
def test_parts_are_disjoint_and_whole(count: int, held: int, wanted: int) -> None:
    training, validation = hold_out(numbered(count), held)
    assert len(validation) == wanted
    both = np.concatenate([training.labels, validation.labels])
    assert sorted(both) == list(range(count))
    again = hold_out(numbered(count), held)[1]
    assert np.array_equal(again.labels, validation.labels)


def test_validation_split_is_what_training_holds_out(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "mnist")
    _, held = split(folder, (1, 28, 28), held=5000, batch_size=8)
    loaded = load_images(folder, "validation")
    assert np.array_equal(loaded.images, held.images)
    assert np.array_equal(loaded.labels, held.labels)


def test_one_class_is_nothing_to_learn(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "mnist", classes=1)
    with pytest.raises(DataError, match="all training images are of one class"):
        split(folder, (1, 28, 28), held=5, batch_size=8)
