# SPDX-License-Identifier: Apache-2.0
"""IDX files of MNIST and Fashion-MNIST."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from tvm_dynprune.data.labelled import LabelledImages, UInt8Array
from tvm_dynprune.errors import DataError

DIGITS = tuple("0123456789")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

PREFIX = {"train": "train", "test": "t10k"}
_IMAGES, _LABELS = 0x0803, 0x0801  # 0x08: unsigned byte; the last byte: dimensions


def find_idx(directory: Path, split: str) -> tuple[Path, Path] | None:
    """Return a split's files of images and labels; None if there are none.

    Raises
    ------
    DataError
        The file of labels is missing.
    """
    prefix = PREFIX[split]
    images = _plain_or_gz(directory / f"{prefix}-images-idx3-ubyte")
    if images is None:
        return None
    labels = _plain_or_gz(directory / f"{prefix}-labels-idx1-ubyte")
    if labels is None:
        raise DataError(
            f"{directory}: {images.name} is there, {prefix}-labels-idx1-ubyte[.gz] is missing: "
            "put the label file beside the images"
        )
    return images, labels


def _plain_or_gz(path: Path) -> Path | None:
    candidates = (path, path.with_name(path.name + ".gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def load_idx(images: Path, labels: Path, *, classes: tuple[str, ...] | None) -> LabelledImages:
    """Read a file of images and its labels.

    Raises
    ------
    DataError
        A file is damaged, or the two do not fit together.
    """
    pixels = _read_idx(images, _IMAGES)[:, np.newaxis]
    numbers = _read_idx(labels, _LABELS).astype(np.int64)
    if len(pixels) != len(numbers):
        raise DataError(
            f"{labels}: {len(numbers)} labels for {len(pixels)} images in {images.name}: "
            "the two files are not of one data set"
        )
    return LabelledImages(pixels, numbers, classes or _idx_classes(images.parent))


def _idx_classes(directory: Path) -> tuple[str, ...]:
    # MNIST and Fashion-MNIST have the same file names; only the directory tells them apart.
    is_fashion = "fashion" in str(directory.resolve()).lower()
    return FASHION if is_fashion or (directory / "FASHION-MNIST").exists() else DIGITS


def _read_idx(path: Path, magic: int) -> UInt8Array:
    content = _read_bytes(path)
    dimensions = magic & 0xFF
    start = 4 * (1 + dimensions)
    if len(content) < start or int.from_bytes(content[:4], "big") != magic:
        raise DataError(f"{path}: not an IDX file (magic number 0x{magic:08x}): download it again")
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    have, want = len(content) - start, math.prod(shape)
    if have != want:
        raise DataError(f"{path}: {have} bytes of data, its header says {want}: download it again")
    # Copied, since PyTorch warns of arrays that cannot be written.
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()


def _read_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}): download it again") from error
