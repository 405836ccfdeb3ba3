# SPDX-License-Identifier: Apache-2.0
"""Images for training: the validation split, and shuffled, augmented batches, all from seeds."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tvm_dynprune.data import LabelledImages

SHIFT = 10
"""Images are shifted by up to a tenth of their side."""


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, C, H, W) and labels int64 (N,) as tensors."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float32 images in [0, 1] and labels in order; the last batch may be smaller."""
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield as_input(images), labels


def as_tensors(data: LabelledImages) -> ImageSet:
    """Copy a data set's arrays into tensors."""
    return ImageSet(torch.from_numpy(data.images.copy()), torch.from_numpy(data.labels.copy()))


def as_input(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1], channels last (faster in PyTorch on CPUs)."""
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


def split_validation(data: ImageSet, count: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return the data without `count` images chosen by `seed`, and these images."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(data)))
    held, kept = order[:count], order[count:]
    return (
        ImageSet(data.images[kept], data.labels[kept]),
        ImageSet(data.images[held], data.labels[held]),
    )


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of one epoch, so that a resumed run draws what an unbroken one draws."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def training_batches(
    data: ImageSet, size: int, seed: int, *, flip: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of shuffled, randomly shifted and (if `flip`) mirrored batches.

    Images are float32 (size, C, H, W) in [0, 1]; a last, smaller batch is left out, since batch
    norm needs enough images.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    for chosen in order.split(size):
        if len(chosen) == size:
            images = _augment(data.images[chosen], generator, flip=flip)
            yield as_input(images), data.labels[chosen]


def _augment(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    count, channels, height, width = images.shape
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    reach = max(height, width) // SHIFT
    padded = F.pad(images, (reach,) * 4)
    dy = torch.randint(0, 2 * reach + 1, (count, 1), generator=generator)
    dx = torch.randint(0, 2 * reach + 1, (count, 1), generator=generator)
    rows = (torch.arange(height) + dy)[:, None, :, None]
    columns = (torch.arange(width) + dx)[:, None, None, :]
    image = torch.arange(count)[:, None, None, None]
    return padded[image, torch.arange(channels)[None, :, None, None], rows, columns]
