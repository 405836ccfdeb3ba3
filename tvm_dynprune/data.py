# SPDX-License-Identifier: Apache-2.0
"""Labelled images from the data sets' own published files; NumPy and Pillow only.

Three formats are read, and recognised by the files that are there:

========================  ==========================================================================
IDX (MNIST, Fashion-      ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-…``, each
MNIST)                    plain or with ``.gz``
``cifar-10-batches-bin``  ``data_batch_1.bin`` … ``data_batch_5.bin``, ``test_batch.bin``; the
                          directory itself or its parent
a folder per class        ``train/<class>/*.png`` and ``test/<class>/*.png``; without those two
                          folders ``<class>/*.png`` serves both splits
========================  ==========================================================================
"""

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from tvm_dynprune.errors import DataError

Split = Literal["train", "test"]
UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

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

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_IDX_IMAGES, _IDX_LABELS = 0x0803, 0x0801  # 0x08: unsigned byte; the last byte: dimensions
_CIFAR_FILES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
_CIFAR_SHAPE = (3, 32, 32)
_CHANNELS = {"L": 1, "RGB": 3}
_IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels.

    Attributes
    ----------
    images
        uint8, (N, C, H, W), 0 to 255.
    labels
        int64, (N,), each an index into `classes`.
    classes
        Class names in label order.
    """

    images: UInt8Array
    labels: Int64Array
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


def load_images(
    directory: Path, split: Split, *, classes: Sequence[str] | None = None
) -> LabelledImages:
    """Read one split of the data set that lies in `directory`.

    Parameters
    ----------
    directory
        A directory in one of the formats of this module's docstring.
    split
        Which part to read.
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
    if (idx := _find_idx(directory, split)) is not None:
        data = _load_idx(*idx, classes=names)
    elif (cifar := _find_cifar(directory, split)) is not None:
        data = _load_cifar(cifar, split, classes=names)
    elif (root := _find_class_folders(directory, split)) is not None:
        data = _load_class_folders(root, classes=names)
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


def has_split(directory: Path, split: Split) -> bool:
    """Whether `directory` has files of its own for `split` (a flat folder per class has not)."""
    directory = Path(directory)
    return (
        _find_idx(directory, split) is not None
        or _find_cifar(directory, split) is not None
        or _find_class_folders(directory, split) == directory / split
    )


def load_image(path: Path, shape: tuple[int, int, int]) -> UInt8Array:
    """Read one image file for a network that takes images of `shape`.

    Parameters
    ----------
    path
        A file that Pillow reads: grey (mode L) for one channel, RGB for three.
    shape
        Channels, height and width that the network takes.

    Returns
    -------
    numpy.ndarray
        uint8, (1, C, H, W).

    Raises
    ------
    DataError
        The file is missing or no image, or has another size or mode than `shape` asks for.
    """
    channels, height, width = shape
    pixels = _read_image(Path(path))
    if pixels.shape != (channels, height, width):
        have_mode, want_mode = (_mode_name(count) for count in (len(pixels), channels))
        raise DataError(
            f"{path}: image is {pixels.shape[2]}x{pixels.shape[1]} {have_mode}, the network takes "
            f"{width}x{height} {want_mode}: convert or resize the image first"
        )
    return pixels[np.newaxis]


def _nothing_found(directory: Path, split: Split) -> str:
    if not directory.is_dir():
        return f"{directory}: no such directory: give the directory with the data set's own files"
    return (
        f"{directory}: no {split} images: looked for {_IDX_PREFIX[split]}-images-idx3-ubyte[.gz], "
        f"cifar-10-batches-bin/{_CIFAR_FILES[split][0]} and {split}/<class>/*.png: "
        "give the directory with the data set's own files"
    )


# IDX --------------------------------------------------------------------------------------------


def _find_idx(directory: Path, split: Split) -> tuple[Path, Path] | None:
    prefix = _IDX_PREFIX[split]
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


def _load_idx(images: Path, labels: Path, *, classes: tuple[str, ...] | None) -> LabelledImages:
    pixels = _read_idx(images, _IDX_IMAGES)[:, np.newaxis]
    numbers = _read_idx(labels, _IDX_LABELS).astype(np.int64)
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


# CIFAR-10 ---------------------------------------------------------------------------------------


def _find_cifar(directory: Path, split: Split) -> Path | None:
    first = _CIFAR_FILES[split][0]
    candidates = (directory, directory / "cifar-10-batches-bin")
    return next((folder for folder in candidates if (folder / first).is_file()), None)


def _load_cifar(folder: Path, split: Split, *, classes: tuple[str, ...] | None) -> LabelledImages:
    batches = [_read_cifar_batch(folder / name) for name in _CIFAR_FILES[split]]
    records = np.concatenate(batches)
    labels = records[:, 0].astype(np.int64)
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, *_CIFAR_SHAPE)
    return LabelledImages(images, labels, classes or _cifar_classes(folder))


def _read_cifar_batch(path: Path) -> UInt8Array:
    if not path.is_file():
        raise DataError(f"{path}: missing: the train split is data_batch_1.bin to data_batch_5.bin")
    record = 1 + int(np.prod(_CIFAR_SHAPE))
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if len(content) == 0 or len(content) % record:
        raise DataError(
            f"{path}: {len(content)} bytes are not a whole number of {record}-byte records: "
            "download it again"
        )
    return content.reshape(-1, record)


def _cifar_classes(folder: Path) -> tuple[str, ...]:
    meta = folder / "batches.meta.txt"
    return tuple(meta.read_text(encoding="utf-8").split()) if meta.is_file() else CIFAR10


# A folder per class -----------------------------------------------------------------------------


def _find_class_folders(directory: Path, split: Split) -> Path | None:
    if (directory / "train").is_dir() or (directory / "test").is_dir():
        directory = directory / split
    if not directory.is_dir():
        return None
    return directory if any(_image_files(folder) for folder in _folders(directory)) else None


def _folders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir())


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)


def _load_class_folders(root: Path, *, classes: tuple[str, ...] | None) -> LabelledImages:
    names = classes or tuple(folder.name for folder in _folders(root) if _image_files(folder))
    images: list[UInt8Array] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if not (root / name).is_dir():
            raise DataError(f"{root}: no folder for class {name!r}: it has {_listed(root)}")
        for path in _image_files(root / name):
            pixels = _read_image(path)
            if images and pixels.shape != images[0].shape:
                raise DataError(
                    f"{path}: image is {_size(pixels)}, the ones before it are "
                    f"{_size(images[0])}: make all images equal in size and mode"
                )
            images.append(pixels)
            labels.append(label)
    if not images:
        raise DataError(f"{root}: no images of the classes {', '.join(names)}: check the folders")
    return LabelledImages(np.stack(images), np.array(labels, dtype=np.int64), names)


def _listed(root: Path) -> str:
    return ", ".join(folder.name for folder in _folders(root))


def _size(pixels: UInt8Array) -> str:
    channels, height, width = pixels.shape
    return f"{width}x{height} {_mode_name(channels)}"


def _mode_name(channels: int) -> str:
    return {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")


def _read_image(path: Path) -> UInt8Array:
    """Pixels as uint8 (C, H, W)."""
    try:
        with Image.open(path) as image:
            if image.mode not in _CHANNELS:
                raise DataError(
                    f"{path}: image mode is {image.mode}; L (grey) and RGB can be read: convert it"
                )
            pixels = np.array(image, dtype=np.uint8)
            channels = _CHANNELS[image.mode]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image file: check the path") from error
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: not an image that Pillow can read: check the file") from error
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1))
