# SPDX-License-Identifier: Apache-2.0
"""One training in several processes, started by ``torchrun``: each has a share of every batch.

DistributedDataParallel gives all of them the mean of their gradients. What is no mean over images,
such as the distance to the budget, is computed from means that all share (`shared_mean`), so that
it belongs to the whole batch. Batch norms normalise by the statistics of a process's own share, and
the running statistics are averaged after every step (`average_statistics`), so that weights and
statistics are the same everywhere.

Alone, every function here does nothing.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

# DistributedDataParallel imports it at its first use; its default arguments would then keep the
# process group, and with it threads that may abort Python's own end.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tvm_dynprune.errors import UserError
from tvm_dynprune.nn.gates import gates_of


def launched() -> tuple[int, int]:
    """Return this process's rank and the number of processes, as ``torchrun`` says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's number; 0 is the one that writes."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _several() else 1


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes for a block.

    Raises
    ------
    UserError
        They do not find each other.
    """
    _, size = launched()
    if size == 1 or _several():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        # gloo in both cases: errors, too, are told through it.
        dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{size} processes (WORLD_SIZE) do not meet: {error}") from None
    try:
        yield
    finally:
        gc.collect()  # what still holds the group, so that its threads end here
        dist.destroy_process_group()


def check_shares(batch_size: int) -> None:
    """Raise UserError if processes cannot have equal shares of a batch, of two images or more."""
    if batch_size % world_size():
        raise UserError(
            f"--batch-size {batch_size}: {world_size()} processes cannot have equal shares of it; "
            f"give a multiple of {world_size()}"
        )
    if batch_size // world_size() < 2:  # of a 1x1 plane one image has no variance
        raise UserError(
            f"--batch-size {batch_size}: batch norm needs 2 images or more in each process; "
            f"give {2 * world_size()} or more"
        )


@contextmanager
def agreed() -> Iterator[None]:
    """Let an error of the user's that one process meets in the block stop all of them.

    All raise it: of several, that of the lowest rank.
    """
    if world_size() == 1:
        yield
        return
    own: UserError | None = None
    try:
        yield
    except UserError as error:
        own = error
    errors: list[Any] = [None] * world_size()
    dist.all_gather_object(errors, own)
    for error in errors:
        if error is not None:
            raise error


def replicate(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the module to call in training, whose gradients are the mean over the processes."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=None if device.type == "cpu" else [device.index],
        forward_sync_buffers=False,  # average_statistics does better
    )


def touch_gates(model: nn.Module) -> Tensor:
    """Return 0, with a gradient of 0 for every weight of a gate.

    Gates have no part in the loss while they are open, but DistributedDataParallel waits for every
    gradient.
    """
    terms = [p.sum() for gate in gates_of(model).values() for p in gate.parameters()]
    return 0 * torch.stack(terms).sum() if terms else torch.zeros(())


def shared_sum(values: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes, without gradient."""
    if world_size() == 1:
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def shared_mean(values: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes, with the gradient of its own values.

    For a function f of the mean m of all m_r, process r then has the gradient f'(m) dm_r, and the
    mean of these is that of f(m).
    """
    if world_size() == 1:
        return values
    return values + (shared_sum(values) / world_size() - values.detach())


def shared_max(values: Tensor) -> Tensor:
    """Return the maximum of a tensor over the processes.

    Its gradient is with the process that has it, times the number of processes since their
    gradients are averaged.
    """
    if world_size() == 1:
        return values
    highest = values.detach().clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    share = world_size() * (values.detach() == highest)
    return highest + share * (values - values.detach())


def average_statistics(model: nn.Module) -> None:
    """Give the batch norms of all processes the mean of their running statistics."""
    if world_size() == 1:
        return
    names = ("running_mean", "running_var")
    found = [b for name, b in model.named_buffers() if name.rpartition(".")[2] in names]
    if not found:
        return
    mean = shared_sum(torch.cat([buffer.flatten() for buffer in found])) / world_size()
    for buffer, value in zip(found, mean.split([b.numel() for b in found]), strict=True):
        buffer.copy_(value.view_as(buffer))
