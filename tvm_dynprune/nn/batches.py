# SPDX-License-Identifier: Apache-2.0
"""Images for training: a held-out part, shuffled and augmented batches."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tvm_dynprune.data import DIGITS, LabelledImages, hold_out, load_images
from tvm_dynprune.errors import DataError
from tvm_dynprune.nn.device import CPU
from tvm_dynprune.nn.distributed import rank, world_size


def split(
    directory: Path, shape: tuple[int, ...], *, held: int, batch_size: int
) -> tuple[LabelledImages, LabelledImages]:
    """Read the training images and hold a part out for validation.

    Parameters
    ----------
    directory
        As for `load_images`.
    shape
        (C, H, W) that the network is made for; images of another height and width are not refused.
    held
        Images to hold out, at most a fifth; which ones depends on the number of images only.
    batch_size
        There must be a batch of images left to train on.

    Raises
    ------
    DataError
        The images are not there, have other channels, or are too few.
    """
    data = load_images(directory, "train")
    if data.images.shape[1] != shape[0]:
        raise DataError(
            f"{directory}: images of {data.images.shape[1:]}, the network takes {shape}"
        )
    if len(np.unique(data.labels)) < 2:
        raise DataError(f"{directory}: all training images are of one class: nothing to learn")
    first, second = hold_out(data, held)
    if len(first) < batch_size:
        raise DataError(f"{directory}: {len(first)} images are fewer than one batch")
    return first, second


class Batches:
    """Shuffled and augmented batches of training images.

    The images lie on the device as uint8 and are augmented there; what is random is drawn before
    an epoch begins, on the CPU, so that it is the same on every device.

    Parameters
    ----------
    batch_size
        Images of a batch, over all processes.
    seed
        What is random depends on it and on the epoch only.
    shift
        Pixels by which each image is shifted at most.

    Raises
    ------
    DataError
        The images are too small to be shifted so far.
    """

    def __init__(
        self,
        data: LabelledImages,
        batch_size: int,
        *,
        seed: int,
        shift: int,
        device: torch.device = CPU,
    ) -> None:
        height, width = data.images.shape[2:]
        if min(height, width) <= shift:
            raise DataError(
                f"images of {width}x{height} are too small to shift by {shift} pixels: enlarge them"
            )
        self.images = torch.from_numpy(data.images).to(device)
        self.labels = torch.from_numpy(data.labels).to(device)
        self.is_mirrored = data.classes != DIGITS
        self.batch_size, self.seed, self.shift, self.device = batch_size, seed, shift, device

    def __len__(self) -> int:
        """Return the number of batches in an epoch; a last one that is not full is left out."""
        return len(self.labels) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's share of each batch: images (N, C, H, W) float32 in [0, 1], labels.

        Unless it shows a digit, each image is mirrored in every other epoch: one half of the images
        in even ones, the other half in odd ones, so that two epochs show both sides of each
        (Jordan, arXiv:2404.00498, section 3.6).
        """
        index, shifts, mirrored = (part.to(self.device) for part in self._draw(epoch))
        for chosen, by, mirror in zip(index, shifts, mirrored, strict=True):
            moved = _augmented(as_float(self.images[chosen]), self.shift, by, mirror)
            yield moved, self.labels[chosen]

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which images make each batch (B, N), their shifts (B, N, 2), and if they are mirrored."""
        count, size = len(self.labels), self.batch_size
        generator = torch.Generator().manual_seed(self.seed * 10_007 + epoch)
        order = torch.randperm(count, generator=generator)
        index = order[: len(self) * size].view(len(self), size)
        shape, high = (size, 2), 2 * self.shift + 1
        shifts = torch.stack([torch.randint(high, shape, generator=generator) for _ in index])
        half = torch.rand(count, generator=torch.Generator().manual_seed(self.seed)) < 0.5
        mirrored = half ^ bool(epoch % 2) if self.is_mirrored else torch.zeros_like(half)
        share = size // world_size()
        mine = slice(rank() * share, (rank() + 1) * share)
        return index[:, mine], shifts[:, mine], mirrored[index[:, mine]]


def _augmented(images: Tensor, shift: int, shifts: Tensor, mirrored: Tensor) -> Tensor:
    """Shift each image by ``shifts - shift`` pixels (N, 2), then mirror those of `mirrored`."""
    n, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4, mode="reflect")
    rows = shifts[:, :1] + torch.arange(height, device=images.device)
    columns = shifts[:, 1:] + torch.arange(width, device=images.device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = torch.arange(n, device=images.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def as_float(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1]."""
    return images.float().div(255)
