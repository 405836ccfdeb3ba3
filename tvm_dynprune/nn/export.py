# SPDX-License-Identifier: Apache-2.0
"""Export a network to ``.pt2`` (torch.export) or ONNX."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tvm_dynprune.errors import ModelError
from tvm_dynprune.files import refuse_existing, write_atomic
from tvm_dynprune.frontend.names import CLASSES_FILE, CLASSES_KEY


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Without what torch says of itself as it exports: deprecations, and what is not installed."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace a network in evaluation mode, with the batch left open.

    Parameters
    ----------
    model
        A network, with gates or without.
    example
        Images (N, C, H, W) float32, N at least 2 so that the batch is not taken for a constant.

    Raises
    ------
    ModelError
        torch.export cannot trace the model.
    """
    batch = torch.export.Dim("batch")
    try:
        return torch.export.export(model.eval(), (example,), dynamic_shapes=({0: batch},))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"torch.export cannot trace {type(model).__name__}: {first}") from error


def write_exported(
    model: nn.Module,
    shape: tuple[int, int, int],
    out: Path,
    *,
    classes: Sequence[str] = (),
    force: bool = False,
) -> None:
    """Write a network to `out`, as ONNX if it ends in ``.onnx`` and as ``.pt2`` otherwise.

    Parameters
    ----------
    shape
        (C, H, W) of its images.
    classes
        Class names, stored in the file.

    Raises
    ------
    OutputExistsError
        `out` exists and `force` is false.
    ModelError
        `out` has another suffix, or the model cannot be exported.
    """
    if out.suffix not in (".pt2", ".onnx"):
        raise ModelError(f"{out}: export writes .pt2 or .onnx")
    refuse_existing(out, force=force)
    program = export(model, torch.rand(2, *shape))
    names = json.dumps(list(classes))
    if out.suffix == ".pt2":
        with write_atomic(out) as path, quiet_torch():
            # torch.export.save wants the suffix.
            temporary = path.with_name(path.name + ".pt2")
            torch.export.save(program, temporary, extra_files={CLASSES_FILE: names})
            temporary.replace(path)
        return
    write_onnx(program, out, {CLASSES_KEY: names})


def write_onnx(
    program: torch.export.ExportedProgram, out: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write an exported program as ONNX, all in one file."""
    with quiet_torch():
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    exported.model.metadata_props.update(metadata or {})
    for node in exported.model.graph:
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # paths of this machine
    with write_atomic(out) as path:
        exported.save(path, external_data=False)
