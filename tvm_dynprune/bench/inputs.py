# SPDX-License-Identifier: Apache-2.0
"""Random images for benchmarks of networks that no data belongs to."""

from collections.abc import Sequence

import numpy as np

_PATCHES = 8  # per side


def random_images(count: int, size: Sequence[int], seed: int) -> np.ndarray:
    """Images (count, *size) float32 in [0, 1] that differ as pictures do, so that gates do.

    Noise in patches and in pixels, each image with a colour of its own. ``size`` is (C, H, W).
    """
    channels, height, width = size
    draw = np.random.default_rng(seed)
    rows, columns = (np.arange(n) * _PATCHES // n for n in (height, width))
    patches = draw.random((count, channels, _PATCHES, _PATCHES))[:, :, rows][..., columns]
    colour = draw.random((count, channels, 1, 1))
    pixels = draw.random((count, *size))
    return ((colour + patches + pixels) / 3).astype("float32")
