# SPDX-License-Identifier: Apache-2.0
"""Where a training runs, and in which precision."""

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from tvm_dynprune.errors import UserError

CPU = torch.device("cpu")


def find_device(name: str) -> torch.device:
    """Return the device of a name: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``.

    ``auto`` is a GPU if there is one. Of several processes, each takes the GPU of its own local
    rank.

    Raises
    ------
    UserError
        There is no such device, or not one for each process.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return CPU
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cuda") or (number and not number.isdecimal()) or name.endswith(":"):
        raise UserError(f"--device {name}: cpu, cuda, cuda:N or auto")
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: PyTorch {torch.__version__} finds no GPU here; use cpu")
    here, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if number and here > 1:
        raise UserError(f"--device {name}: with {here} processes say cuda, each takes its own GPU")
    index = int(number or os.environ.get("LOCAL_RANK", "0"))
    if here > found or index >= found:
        wanted = f"{here} processes need as many GPUs" if here > 1 else f"there is no GPU {index}"
        raise UserError(f"--device {name}: {wanted}, PyTorch finds {found}")
    return torch.device("cuda", index)


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """Return the type of 16 bits that a device computes fast in; None for a CPU without one."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    # "bf16" is ARM's. Without such instructions bfloat16 is emulated, slower than float32.
    found = torch.cpu.get_capabilities()
    has_bf16 = any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if has_bf16 else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return a context that computes in `dtype` where that is safe; in float32 with None."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def read_late(values: Iterator[Tensor]) -> Iterator[float]:
    """Read each number when the next one is being computed, so that a GPU never has to wait."""
    before: Tensor | None = None
    for value in values:
        if before is not None:
            yield float(before)
        before = value
    if before is not None:
        yield float(before)
