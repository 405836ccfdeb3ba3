# SPDX-License-Identifier: Apache-2.0
"""Single image files, read with Pillow."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tvm_dynprune.data.labelled import UInt8Array
from tvm_dynprune.errors import DataError

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_CHANNELS = {"L": 1, "RGB": 3}


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
    pixels = read_image(Path(path))
    if pixels.shape != (channels, height, width):
        have_mode, want_mode = (_mode_name(count) for count in (len(pixels), channels))
        raise DataError(
            f"{path}: image is {pixels.shape[2]}x{pixels.shape[1]} {have_mode}, the network takes "
            f"{width}x{height} {want_mode}: convert or resize the image first"
        )
    return pixels[np.newaxis]


def describe_size(pixels: UInt8Array) -> str:
    """Size and mode of an image (C, H, W), for messages: "32x32 RGB"."""
    channels, height, width = pixels.shape
    return f"{width}x{height} {_mode_name(channels)}"


def _mode_name(channels: int) -> str:
    return {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")


def read_image(path: Path) -> UInt8Array:
    """Return an image's pixels, uint8 (C, H, W).

    Raises
    ------
    DataError
        The file is missing, is no image, or has a mode other than L and RGB.
    """
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
