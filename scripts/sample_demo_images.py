# SPDX-License-Identifier: Apache-2.0
"""Write the demo's image sample and what masked PyTorch computes for it.

Usage: python scripts/sample_demo_images.py DATA_DIR CHECKPOINT DEMO_DIR
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch

from tvm_dynprune.bench.run import as_input
from tvm_dynprune.data import load_images
from tvm_dynprune.nn import load_checkpoint

IMAGES = 1000


def main(data: str, checkpoint: str, demo: str) -> None:
    """Write ``fashion-mnist-sample/`` (IDX files) and ``reference.npz`` into `demo`."""
    sample = load_images(Path(data), "test")
    images, labels = sample.images[:IMAGES, 0], sample.labels[:IMAGES].astype(np.uint8)
    folder = Path(demo) / "fashion-mnist-sample"
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes()
        path = folder / f"t10k-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))
    model, _ = load_checkpoint(Path(checkpoint))
    with torch.no_grad():
        logits = model(torch.from_numpy(as_input(sample.images[:IMAGES])))
    np.savez_compressed(Path(demo) / "reference.npz", logits=logits.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
