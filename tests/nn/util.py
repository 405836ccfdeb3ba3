# SPDX-License-Identifier: Apache-2.0
"""What the training and checkpoint tests share: a tiny data set, a short training."""

from pathlib import Path

import numpy as np

from tvm_dynprune.nn.train import TrainConfig


def write_data(folder: Path, *, train: int = 60, test: int = 6, classes: int = 10) -> Path:
    """IDX files of 28x28 images whose class is the bright one of ten bars, plus noise."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % classes).astype(np.uint8)
        images = random.integers(0, 64, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 6] = 255
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim])
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            path = folder / f"{prefix}-{name}-ubyte"
            path.write_bytes(header + sizes + array.tobytes())
    return folder


def config(data: Path, **changes) -> TrainConfig:
    """Six steps an epoch, gates deciding from the second of them on."""
    fields = {
        "network": "fashion_cnn",
        "data": str(data),
        "group_size": 16,
        "epochs": 2,
        "batch_size": 8,
        "warm_up": 0.1,
        "anneal": 0.5,
        "bf16": False,
    }
    return TrainConfig(**(fields | changes))
