# SPDX-License-Identifier: Apache-2.0
"""Images for training: a held-out part, shuffled and augmented batches, and their evaluation."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_dynprune.data import DIGITS, LabelledImages, hold_out, load_images
from tvm_dynprune.errors import DataError
from tvm_dynprune.nn.gates import gates_of, set_gates
from tvm_dynprune.nn.latency import LatencyTable
from tvm_dynprune.nn.macs import MacPlan, recorded_masks


def split(
    directory: Path, shape: tuple[int, ...], *, held: int, batch_size: int
) -> tuple[LabelledImages, LabelledImages]:
    """Read the training images and hold a part out for validation.

    Parameters
    ----------
    directory
        As for `load_images`.
    shape
        (C, H, W) that the network takes.
    held
        Images to hold out, at most a fifth; which ones depends on the number of images only.
    batch_size
        There must be a batch of images left to train on.

    Raises
    ------
    DataError
        The images are not there, have another size, or are too few.
    """
    data = load_images(directory, "train")
    if data.images.shape[1:] != shape:
        raise DataError(
            f"{directory}: images of {data.images.shape[1:]}, the network takes {shape}"
        )
    if len(np.unique(data.labels)) < 2:
        raise DataError(f"{directory}: all training images are of one class: nothing to learn")
    first, second = hold_out(data, held)
    if len(first) < batch_size:
        raise DataError(f"{directory}: {len(first)} images are fewer than one batch")
    return first, second


def batches(
    data: LabelledImages, batch_size: int, *, seed: int, epoch: int, shift: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled images (N, C, H, W) float32 in [0, 1] and their labels (N,) int64.

    Each image is shifted by up to `shift` pixels and, unless it shows a digit, mirrored in every
    other epoch: one half of the images in even ones, the other half in odd ones, so that two epochs
    show both sides of each (Jordan, arXiv:2404.00498, section 3.6). A last batch that is not full
    is left out. What is random depends on `seed` and `epoch` only.
    """
    generator = torch.Generator().manual_seed(seed * 10_007 + epoch)
    order = torch.randperm(len(data), generator=generator)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    half = torch.rand(len(data), generator=torch.Generator().manual_seed(seed)) < 0.5
    mirrored = half ^ bool(epoch % 2) if data.classes != DIGITS else torch.zeros_like(half)
    for start in range(0, len(data) - batch_size + 1, batch_size):
        index = order[start : start + batch_size]
        moved = _augmented(as_float(images[index]), shift, mirrored[index], generator)
        yield moved, labels[index]


def _augmented(images: Tensor, shift: int, mirrored: Tensor, generator: torch.Generator) -> Tensor:
    n, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4, mode="reflect")
    shifts = torch.randint(0, 2 * shift + 1, (n, 2), generator=generator)
    rows = shifts[:, :1] + torch.arange(height)
    columns = shifts[:, 1:] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = torch.arange(n)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def as_float(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1]."""
    return images.float().div(255)


def evaluate(
    model: nn.Module,
    data: LabelledImages,
    plan: MacPlan,
    prefix: str = "",
    latency: LatencyTable | None = None,
) -> dict[str, float]:
    """Measure a network with hard gates.

    Returns
    -------
    dict
        Names with the prefix: accuracy; with gates, ``mac_cut``; with a table, ``latency_fraction``
        too, the expected share of the dense latency. The model is left in evaluation mode.
    """
    model.eval()
    set_gates(model, "hard")
    correct, executed, expected = 0, 0.0, 0.0
    for start in range(0, len(data), 500):
        images = as_float(torch.from_numpy(data.images[start : start + 500]))
        labels = torch.from_numpy(data.labels[start : start + 500])
        with torch.no_grad(), recorded_masks(model) as masks:
            correct += int((model(images).argmax(1) == labels).sum())
        decisions = {name: (mask != 0).double() for name, mask in masks.items()}
        macs = plan.executed(decisions).values()
        executed += sum(float(each.expand(len(images)).sum()) for each in macs)
        if latency is not None:
            expected += len(images) * float(latency.fraction(plan.opened(decisions)))
    record = {f"{prefix}accuracy": round(correct / len(data), 5)}
    if gates_of(model):
        record[f"{prefix}mac_cut"] = round(1 - executed / len(data) / plan.dense_total, 4)
    if latency is not None:
        record[f"{prefix}latency_fraction"] = round(expected / len(data), 4)
    return record
